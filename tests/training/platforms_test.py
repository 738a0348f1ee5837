"""A training step is lowered for CPU, CUDA and TPU without the hardware, and sums only what it has to over devices."""

import collections
import functools
import re
from typing import Any

import jax
import numpy as np
import pytest
from jax import export
from tiers import large_later

from rap_jax._runtime.mesh import gather, make_mesh, replicated, state_shardings
from rap_jax.config import AttackConfig, ModelConfig, OptimizerConfig, PruneConfig, TrainConfig
from rap_jax.data.batches import BatchInputs
from rap_jax.models import create_model
from rap_jax.training.optimizer import StagePlan, make_optimizer, make_penalty, specs_from_config
from rap_jax.training.sharded_step import step_as_program
from rap_jax.training.state import StageState, StepKeys, init_stage_state
from rap_jax.training.step import StepFunctions

BATCH = 16


def lowered_for(network: str, num_model_shards: int = 1, num_devices: int = 8) -> tuple[Any, tuple[Any, ...]]:
    """The program of an ADMM step, and what it takes."""
    shape = (28, 28, 1) if network == "lenet_mnist" else (32, 32, 3)
    mesh = make_mesh(jax.devices()[:num_devices], num_model_shards=num_model_shards)
    model = create_model(ModelConfig(network, 2), input_shape=shape, num_classes=10, implementation="xla")
    weights = jax.eval_shape(model.init, jax.random.key(0))
    prune = PruneConfig(sparsity=(("*", 0.5),))
    specs = specs_from_config(prune, weights.params, output_layer=model.output_layer)
    penalty = make_penalty(weights.params, prune, specs, mesh)
    rate = lambda step: 0.1
    tx = make_optimizer(OptimizerConfig(), rate, penalty=penalty)
    functions = StepFunctions(
        model,
        tx,
        TrainConfig(AttackConfig(num_steps=2)),
        StagePlan("admm", 100, 10, rate, 10),
        functools.partial(gather, mesh=mesh),
    )
    state: StageState = jax.eval_shape(lambda start: init_stage_state(start, tx), weights)
    places = state_shardings(state.train, mesh, unsharded=replicated(mesh))
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    like: Any = jax.ShapeDtypeStruct
    inputs = BatchInputs(like((64, *shape), np.uint8), like((64,), np.int32), like((BATCH,), np.int32))
    keys = StepKeys(jax.random.key(1), jax.random.key(2))
    return step_as_program(functions, mesh), (jax.tree.map(place, state.train, places), inputs, keys, False)


@pytest.mark.parametrize("network", large_later(["lenet_mnist", "resnet18"]))
@pytest.mark.parametrize("num_model_shards", [1, 4])
def test_the_step_is_lowered_for_every_platform(network: str, num_model_shards: int) -> None:
    step, given = lowered_for(network, num_model_shards)
    for platform in ("cpu", "cuda", "tpu"):
        exported = export.export(step, platforms=[platform])(*given)
        assert exported.platforms == (platform,) and exported.nr_devices == 8


def collectives(network: str, num_model_shards: int) -> dict[str, int]:
    """Name -> how many are in the compiled program."""
    step, given = lowered_for(network, num_model_shards)
    text = step.lower(*given).compile().as_text()
    found = re.findall(r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(", text)
    return dict(collections.Counter(found))


@pytest.mark.e2e
def test_the_sharded_step_has_the_collectives_that_it_needs_and_no_others() -> None:
    """Gradients and metrics are summed over the batch; weights that lie in pieces are gathered; nothing else."""
    assert collectives("lenet_mnist", 1).keys() == {"all-reduce"}
    pieces = collectives("lenet_mnist", 4)
    assert pieces.keys() == {"all-reduce", "all-gather"}
    assert pieces["all-gather"] == 2, "fc1 for the passes through the network, and w + u for the dual step"
