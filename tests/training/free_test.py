"""Free adversarial training against a loop written out by hand, and that a run of it goes on as if nothing happened."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from train_test import FORMS, IMAGES, LABELS, LEARNING_RATE, LINEAR, PARAMS, plan_of

from rap_jax._runtime.mesh import make_mesh, replicated
from rap_jax.config import AttackConfig, AugmentConfig, TrainConfig, free_attack
from rap_jax.data import Split
from rap_jax.data.batches import BatchInputs
from rap_jax.models import Model
from rap_jax.training.input import ResidentInput
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.sharded_step import batch_mesh
from rap_jax.training.stage import stage_inputs
from rap_jax.training.state import StepKeys, TrainState, first_perturbation
from rap_jax.training.step import StepFunctions

pytestmark = pytest.mark.usefixtures("optimised")

EPSILON, REPLAYS = 0.3, 3
BATCHES = np.array([[3, 1, 4, 15, 9, 2, 6, 5], [8, 3, 0, 7, 11, 12, 20, 23]], np.int32)
KEYS = StepKeys(jax.random.key(1), jax.random.key(2))
FREE = TrainConfig(free_attack("linf", EPSILON), free_replays=REPLAYS)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def by_hand(norm: str, ramp_steps: int, smoothing: float) -> Iterator[Any]:
    """Radius, loss and accuracy of each update of algorithm 1, weights and perturbation after it; logits x W, NumPy."""
    kernel, moved_by = np.asarray(PARAMS["kernel"], np.float64), np.zeros((8, 4))
    update, clipped = 0, 0
    for indices in BATCHES:
        clean, labels = IMAGES[indices].reshape(8, 4) / 255, LABELS[indices]
        targets = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
        for _ in range(REPLAYS):
            update += 1
            radius = EPSILON * (min(1.0, update / ramp_steps) if ramp_steps else 1.0)
            images = np.clip(clean + moved_by, 0, 1)
            clipped += (images != clean + moved_by).sum()
            error = softmax(images @ kernel) - targets
            loss = -(targets * np.log(softmax(images @ kernel))).sum(1).mean()
            accuracy = ((images @ kernel).argmax(1) == labels).mean()
            rising = error @ kernel.T
            length = lambda rows: np.linalg.norm(rows, axis=1, keepdims=True)
            if norm == "linf":
                moved_by = np.clip(moved_by + radius * np.sign(rising), -radius, radius)
            else:
                moved_by = moved_by + radius * rising / length(rising)
                moved_by = moved_by * np.minimum(1, radius / length(moved_by))
            kernel = kernel - LEARNING_RATE * images.T @ error / 8
            yield radius, loss, accuracy, kernel, moved_by
    assert clipped > 0  # or the test would not show where the gradient is taken


def watched(calls: list[bool]) -> Model:
    """The linear model, noting in which mode each pass through it is."""

    def apply(params: Any, batch_stats: Any, images: jax.Array, train: bool) -> Any:
        calls.append(train)
        return LINEAR.apply(params, batch_stats, images, train)

    return dataclasses.replace(LINEAR, apply=apply)


@pytest.mark.parametrize(("num_devices", "form"), [(1, "program"), (8, "program"), (8, "programs")])
@pytest.mark.parametrize(
    ("norm", "ramp_steps", "smoothing"), [("linf", 0, 0.0), ("linf", 4, 0.0), ("l2", 4, 0.0), ("linf", 0, 0.3)]
)
def test_updates_equal_numpy(num_devices: int, form: str, norm: Any, ramp_steps: int, smoothing: float) -> None:
    calls: list[bool] = []
    mesh = make_mesh(jax.devices()[:num_devices])
    tx = optax.with_extra_args_support(optax.sgd(LEARNING_RATE))
    config = TrainConfig(free_attack(norm, EPSILON), free_replays=REPLAYS, label_smoothing=smoothing)
    functions = StepFunctions(watched(calls), tx, config, plan_of(ramp_steps=ramp_steps))
    params = jax.tree.map(jnp.copy, PARAMS)
    nothing = first_perturbation(config, (8, 2, 2, 1))
    state = TrainState(jnp.int32(0), params, {"passes": jnp.int32(0)}, tx.init(params), nothing)
    place = replicated(mesh) if form == "program" else jax.devices()[0]
    state, split = jax.device_put((state, (IMAGES, LABELS)), place)
    step = FORMS[form](functions, mesh)
    for number, (radius, loss, accuracy, kernel, moved_by) in enumerate(by_hand(norm, ramp_steps, smoothing)):
        state, metrics = step(state, BatchInputs(*split, BATCHES[number // REPLAYS]), KEYS, False)
        np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
        assert float(metrics.accuracy) == accuracy
        assert float(metrics.epsilon) == pytest.approx(radius)
        np.testing.assert_allclose(state.params["kernel"], kernel, atol=1e-5)
        np.testing.assert_allclose(np.reshape(state.perturbation, (8, 4)), moved_by, atol=1e-5)
        assert int(state.step) == int(state.batch_stats["passes"]) == number + 1
    assert set(calls) == {True} and len(calls) == 1  # one pass gives both gradients


def test_replays_see_the_same_crops_and_mixtures() -> None:
    config = dataclasses.replace(FREE, augment=AugmentConfig(crop_padding=1, horizontal_flip=True), mixup_alpha=1.0)
    functions = StepFunctions(LINEAR, optax.with_extra_args_support(optax.sgd(0.1)), config, plan_of())
    prepare = jax.jit(functions.prepare)
    batches = [prepare(step, BatchInputs(IMAGES, LABELS, BATCHES[0]), KEYS) for step in range(2 * REPLAYS)]
    for first, other in ((0, 1), (0, 2), (3, 4), (3, 5)):
        chex.assert_trees_all_equal(*((batches[n].images, batches[n].targets) for n in (first, other)))
    assert np.abs(batches[0].images - batches[3].images).max() > 0.1


def batches(replays: int, step: int, num_steps: int) -> list[np.ndarray]:
    """The batches of a stage from `step` on: 4 of them in a pass over 35 images."""
    train = FREE if replays else TrainConfig(None)
    config = SimpleNamespace(batch_size=8, seed=5, train=dataclasses.replace(train, free_replays=replays))
    split = Split(np.zeros((35, 2, 2, 1), np.uint8), np.zeros(35, np.int32))
    context: Any = SimpleNamespace(config=config, train=ResidentInput(split, make_mesh(jax.devices()[:1])))
    plan = StagePlan("admm", num_steps, 1, lambda step: 0.1)
    return [np.asarray(inputs.indices) for inputs in stage_inputs(plan, context, step)]


def test_each_batch_comes_as_often_as_it_is_replayed() -> None:
    plain = batches(0, 0, 9)
    assert not np.array_equal(plain[0], plain[4])  # the second pass has another order
    expected = np.repeat(plain, REPLAYS, axis=0)
    np.testing.assert_array_equal(batches(REPLAYS, 0, 27), expected)
    for step in (1, 2, 3, 13, 26):
        np.testing.assert_array_equal(batches(REPLAYS, step, 27), expected[step:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"free_replays": 1}, "free_replays is 1; expected 0, or 2 or more updates"),
        ({"free_replays": -2}, "free_replays is -2; expected 0, or 2 or more updates"),
        ({"attack": None}, "attack is None; expected one step, no restarts and no random start"),
        ({"attack": AttackConfig(num_steps=1, num_restarts=2)}, r"num_restarts=2.*; expected one step"),
        ({"attack": AttackConfig(num_steps=1)}, r"random_start=True\); expected one step"),
        ({"attack": AttackConfig(random_start=False)}, r"num_steps=40.*; expected one step"),
        ({"attack_batch_norm": "batch"}, "attack_batch_norm is 'batch'; expected running in free training"),
    ],
)
def test_what_free_training_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FREE, **changes)


def test_there_is_nothing_to_split_over_a_cpu() -> None:
    assert batch_mesh(FREE, make_mesh()).size == 1
    assert batch_mesh(dataclasses.replace(FREE, free_replays=0), make_mesh()).size == 8
    assert first_perturbation(dataclasses.replace(FREE, free_replays=0), (8, 2, 2, 1)) == ()


@pytest.mark.nightly
def test_a_run_goes_on_between_two_replays(tmp_path: Path) -> None:
    """Through all stages, the last of them on the small network."""
    config = tiny.tiny_config(train=TrainConfig(free_attack("linf", 0.1), free_replays=REPLAYS))
    tiny.run_and_watch(tmp_path / "whole", config, output=tiny.EVERY_STEP)
    folder = tiny.one_step_back(tmp_path / "whole", tmp_path / "run")
    again = tiny.run_and_watch(folder, config)
    # The third update on the batch is missing.
    assert set(again.began.values()) == {tiny.STEPS - 1} and (tiny.STEPS - 1) % REPLAYS == 2
    assert tiny.digests_of(folder) == tiny.digests_of(tmp_path / "whole")
    saved = folder / "checkpoints" / "retrain" / str(tiny.STEPS) / "meta" / "metadata"
    assert json.loads(saved.read_text())["layout"]["train/perturbation"] == "float32[48,8,8,1]"
