"""What lies where, and that no program of a training step lets the devices of a CPU wait for each other."""

import dataclasses
import re
from typing import Any

import chex
import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiers import large_later

from rap_jax._runtime.mesh import (
    avoids_collectives,
    first_device_sharding,
    make_mesh,
    put_split,
    replicated,
)
from rap_jax.attacks import pgd_restarts
from rap_jax.attacks.pgd import Restarts
from rap_jax.config import AttackConfig, ModelConfig, TrainConfig
from rap_jax.data.batches import BatchInputs
from rap_jax.models import create_model, from_linen
from rap_jax.models.layers.linear import ConvNorm, Dense
from rap_jax.models.model import Weights
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.sharded_step import (
    attack_program,
    attack_shardings,
    batch_mesh,
    make_train_step,
    step_as_program,
    step_in_programs,
)
from rap_jax.training.state import StepKeys, TrainState
from rap_jax.training.step import AttackInputs, StepFunctions

pytestmark = pytest.mark.e2e

COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+", re.IGNORECASE)
SHAPE, BATCH = (16, 16, 1), 16
IMAGES = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, 40).astype(np.int32)
# Shares of a batch differ in brightness, so statistics of a share are far from those of the batch.
DARKER = (IMAGES * np.linspace(1, 0.1, 40).reshape(-1, 1, 1, 1)).astype(np.uint8)
INDICES = np.arange(3, 3 + BATCH, dtype=np.int32)
KEYS = StepKeys(jax.random.key(1), jax.random.key(2))
ATTACK = AttackConfig(epsilon=0.1, step_size=0.05, num_steps=2)


# What XLA splits over the devices is settled before it optimises.


def make_functions(
    network: str = "lenet_mnist", attack: AttackConfig | None = ATTACK, **settings: Any
) -> StepFunctions:
    model = create_model(ModelConfig(network, width=1), input_shape=SHAPE, num_classes=10)
    tx = optax.with_extra_args_support(optax.sgd(0.1, momentum=0.9))
    return StepFunctions(model, tx, TrainConfig(attack, **settings), StagePlan("pretrain", 100, 10, lambda step: 0.1))


def make_state(functions: StepFunctions, place: Any) -> TrainState:
    params, batch_stats = jax.jit(functions.model.init, out_shardings=place)(jax.random.key(0))
    step, opt_state = jax.device_put((np.int32(5), functions.tx.init(params)), place)
    return TrainState(step, params, batch_stats, opt_state)


def inputs_of(functions: StepFunctions, num_devices: int) -> tuple[Weights, AttackInputs]:
    """The arguments of an attack, lying as its program wants them."""
    mesh = make_mesh(jax.devices()[:num_devices])
    state = make_state(functions, first_device_sharding(mesh))
    inputs = jax.jit(functions.prepare)(state.step, BatchInputs(*put_split(IMAGES, LABELS, mesh), INDICES), KEYS)
    place = attack_shardings(batch_mesh(functions.config, mesh))
    return jax.device_put((Weights(state.params, state.batch_stats), inputs), place)


def attacked(functions: StepFunctions, num_devices: int) -> jax.Array:
    return attack_program(functions, make_mesh(jax.devices()[:num_devices]))(*inputs_of(functions, num_devices))


def test_everything_lies_on_the_first_device_of_a_cpu() -> None:
    mesh, first = make_mesh(), {jax.devices()[0]}
    assert avoids_collectives(mesh) and not avoids_collectives(make_mesh(jax.devices()[:1]))
    functions = make_functions()
    state, split = make_state(functions, first_device_sharding(mesh)), put_split(IMAGES, LABELS, mesh)
    step = make_train_step(functions.model, functions.tx, functions.config, functions.plan, mesh)
    after, metrics = step(state, BatchInputs(*split, INDICES), KEYS, False)
    assert all(leaf.devices() == first for leaf in jax.tree.leaves((split, after, metrics)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))  # donated


@pytest.mark.parametrize("network", large_later(["lenet_mnist", "lenet_cifar", "resnet18"]))
@pytest.mark.parametrize(
    "attack", [ATTACK, AttackConfig(norm="l2", epsilon=0.1, step_size=0.05, num_steps=2, num_restarts=2)]
)
def test_the_attack_has_no_collective(network: str, attack: AttackConfig) -> None:
    functions = make_functions(network, attack)
    program = attack_program(functions, make_mesh()).lower(*inputs_of(functions, 8)).compile().as_text()
    assert "num_partitions=8" in program
    assert not COLLECTIVE.findall(program)


def test_one_program_has_collectives() -> None:
    """Or the test above could not fail."""
    functions, mesh = make_functions(), make_mesh()
    whole = replicated(mesh)
    inputs = BatchInputs(*jax.device_put((IMAGES, LABELS), whole), INDICES)
    step: Any = step_as_program(functions, mesh)
    program = step.lower(make_state(functions, whole), inputs, KEYS, False).compile().as_text()
    assert "num_partitions=8" in program and COLLECTIVE.findall(program)


def test_the_random_start_does_not_depend_on_the_devices() -> None:
    functions = make_functions(attack=AttackConfig(epsilon=0.1, step_size=0.05, num_steps=0))
    one, *others = (np.asarray(attacked(functions, number)) for number in (1, 2, 8))
    assert 0.09 < np.abs(one - IMAGES[INDICES] / 255).max() <= 0.1001
    for other in others:
        np.testing.assert_array_equal(other, one)


def test_microbatches_of_a_share_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = make_functions(attack=AttackConfig(norm="l2", epsilon=1.0, step_size=0.5, num_steps=2))
    whole = attacked(functions, 2)
    monkeypatch.setattr("rap_jax._runtime.mesh.MAX_MICROBATCH_SIZE", 4)
    sizes = set()

    def watched(loss_fn: Any, images: jax.Array, **settings: Any) -> Restarts:
        sizes.add(len(images))
        return pgd_restarts(loss_fn, images, **settings)

    monkeypatch.setattr("rap_jax.training.step.pgd_restarts", watched)
    np.testing.assert_allclose(attacked(functions, 2), whole, atol=1e-5)
    assert sizes == {4}


def test_statistics_of_the_batch_are_those_of_the_whole_batch() -> None:
    """The attack then runs on one device, since the statistics of a share would be others."""
    functions = make_functions("resnet18", attack_batch_norm="batch")
    images = attacked(functions, 8)
    assert len(images.devices()) == 1
    np.testing.assert_allclose(images, attacked(functions, 1), atol=1e-6)
    assert batch_mesh(functions.config, make_mesh()).size == 1
    assert batch_mesh(make_functions("resnet18").config, make_mesh()).size == 8


class NormedNet(nn.Module):
    """A convolution with BatchNorm and a dense layer."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        conv = ConvNorm(6, kernel_size=3, padding=1, kernel_init=nn.initializers.he_normal(), name="conv")
        return Dense(10, name="fc")(nn.relu(conv(images, train)).mean((1, 2)))


@pytest.mark.parametrize("settings", [{}, {"mixup_alpha": 1.0, "label_smoothing": 0.1}])
def test_programs_do_what_one_program_does(settings: dict[str, Any]) -> None:
    """Two steps of a network with BatchNorm, whose statistics are those of the whole batch either way."""
    # Without steps of a sign, which turns rounding into whole steps of a pixel.
    attack = AttackConfig(norm="l2", epsilon=1.0, step_size=0.5, num_steps=2)
    model = from_linen(NormedNet(), input_shape=SHAPE, num_classes=10, output_layer="fc")
    functions, mesh = dataclasses.replace(make_functions("lenet_mnist", attack, **settings), model=model), make_mesh()
    found = []
    for form, place in ((step_as_program, replicated(mesh)), (step_in_programs, first_device_sharding(mesh))):
        state, split = make_state(functions, place), jax.device_put((DARKER, LABELS), place)
        for indices in (INDICES, INDICES + 20):
            state, metrics = form(functions, mesh)(state, BatchInputs(*split, indices), KEYS, False)
        found.append(jax.device_get((state, metrics)))
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-5)
