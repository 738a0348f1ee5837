"""Distillation from the dense network: an update against NumPy, which network teaches, runs that go on or together."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import average_test
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeds_step_test
import tiny
import together_test
from train_test import ATTACK, FORMS, IMAGES, INDICES, KEYS, LABELS, LEARNING_RATE, LINEAR, PARAMS, plan_of

from rap_jax._runtime.mesh import gather, make_mesh, put_split, replicated, state_shardings
from rap_jax.config import StageConfig, TrainConfig
from rap_jax.data.batches import BatchInputs
from rap_jax.models.model import Weights
from rap_jax.training import pipeline
from rap_jax.training.seeds_step import make_seeds_step
from rap_jax.training.state import TrainState
from rap_jax.training.step import StepFunctions, distillation_loss
from rap_jax.training.task import Teacher

pytestmark = pytest.mark.usefixtures("optimised")

TEACHER = Weights({"kernel": 3 * jax.random.normal(jax.random.key(5), (4, 3))}, {"passes": jnp.int32(0)})


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def divergence(first: np.ndarray, second: np.ndarray) -> float:
    return (first * np.log(first / second)).sum(1).mean()


@pytest.mark.parametrize(("num_devices", "form"), [(1, "program"), (8, "program"), (8, "programs")])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])  # which counts in the pretrain stage alone
def test_an_update_equals_numpy(num_devices: int, form: str, label_smoothing: float) -> None:
    mesh, tx = make_mesh(jax.devices()[:num_devices]), optax.with_extra_args_support(optax.sgd(LEARNING_RATE))
    config = TrainConfig(ATTACK, distillation="rslad", label_smoothing=label_smoothing)
    functions = StepFunctions(LINEAR, tx, config, plan_of(), teacher=LINEAR)
    params, teacher = jax.tree.map(jnp.copy, (PARAMS, TEACHER))
    state = TrainState(jnp.int32(0), params, {"passes": jnp.int32(7)}, tx.init(params), teacher=teacher)
    place = replicated(mesh) if form == "program" else jax.devices()[0]
    state, split = jax.device_put((state, (IMAGES, LABELS)), place)
    state, metrics = FORMS[form](functions, mesh)(state, BatchInputs(*split, INDICES), KEYS, False)

    kernel, teacher_kernel = (np.asarray(leaf, np.float64) for leaf in (PARAMS["kernel"], TEACHER.params["kernel"]))
    images = IMAGES[INDICES].reshape(8, 4) / 255
    # In evaluation mode, as teacher and attack see the networks, the logits are -x W.
    soft = softmax(-images @ teacher_kernel)
    attacked = images + 0.1 * np.sign((softmax(-images @ kernel) - soft) @ -kernel.T)
    outputs, clean = softmax(attacked @ kernel), softmax(images @ kernel)
    loss = 5 / 6 * divergence(soft, outputs) + 1 / 6 * divergence(soft, clean)
    gradient = (5 / 6 * attacked.T @ (outputs - soft) + 1 / 6 * images.T @ (clean - soft)) / 8
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(state.params["kernel"], kernel - LEARNING_RATE * gradient, atol=1e-5)
    assert float(metrics.accuracy) == (outputs.argmax(1) == LABELS[INDICES]).mean()
    np.testing.assert_array_equal(state.teacher.params["kernel"], TEACHER.params["kernel"])
    assert int(state.batch_stats["passes"]) == 8 and int(state.teacher.batch_stats["passes"]) == 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    logits = jnp.array([[1.0, 2.0, -3.0], [0.0, 90.0, -90.0]])  # the second certain: two probabilities are 0
    loss, gradient = jax.value_and_grad(distillation_loss)(logits, logits, jax.nn.softmax(logits))
    assert abs(float(loss)) < 1e-6
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def one_step_in_pieces(num_devices: int, num_model_shards: int) -> TrainState:
    mesh = make_mesh(jax.devices()[:num_devices], num_model_shards=num_model_shards)
    tx = optax.with_extra_args_support(optax.sgd(LEARNING_RATE))
    config = dataclasses.replace(average_test.TRAIN, distillation="rslad", awp_gamma=0.1, ema_decay=0.0)
    network, plan, complete = average_test.MODEL, average_test.PLAN, functools.partial(gather, mesh=mesh)
    functions = StepFunctions(network, tx, config, plan, complete, network)
    params = {"kernel": jnp.copy(average_test.KERNEL)}
    teacher = Weights({"kernel": average_test.KERNEL[::-1]}, {"mean": jnp.zeros(64)})
    state = TrainState(jnp.int32(0), params, {"mean": jnp.zeros(64)}, tx.init(params), teacher=teacher)
    state = jax.device_put(state, state_shardings(state, mesh, unsharded=replicated(mesh)))
    split = jax.device_put((average_test.IMAGES, average_test.LABELS), replicated(mesh))
    return FORMS["program"](functions, mesh)(state, BatchInputs(*split, np.arange(16, dtype=np.int32)), KEYS, False)[0]


def test_a_teacher_in_pieces_teaches_as_a_whole_one() -> None:
    whole, pieces = one_step_in_pieces(1, 1), one_step_in_pieces(4, 2)
    assert pieces.teacher.params["kernel"].addressable_shards[0].data.size == 64 * 64 / 2
    np.testing.assert_allclose(np.asarray(pieces.params["kernel"]), np.asarray(whole.params["kernel"]), atol=1e-5)
    assert np.abs(np.asarray(whole.params["kernel"]) - average_test.KERNEL).max() > 1e-3


@pytest.mark.parametrize("stacked", [False, True])
def test_each_seed_has_its_own_teacher(stacked: bool) -> None:
    tx, mesh = optax.with_extra_args_support(optax.adam(0.1)), make_mesh(jax.devices()[:2])
    config = dataclasses.replace(seeds_step_test.TRAIN, distillation="rslad")
    network, seeds = seeds_step_test.MODEL, range(3)
    functions = StepFunctions(network, tx, config, seeds_step_test.PLAN, teacher=network)
    pool = put_split(seeds_step_test.IMAGES, seeds_step_test.LABELS, make_mesh(jax.devices()[:1]))

    def state_of(seed: int) -> TrainState:
        teacher = Weights({"kernel": jax.random.normal(jax.random.key(30 + seed), (4, 3))}, {})
        return seeds_step_test.first_state(seed, tx)._replace(teacher=teacher)

    step = make_seeds_step(functions, pool, len(seeds), mesh, stacked=stacked)
    indices = seeds_step_test.INDICES[0]
    keys = step.join([seeds_step_test.keys_of(seed) for seed in seeds])
    states, _ = step.advance(step.join([state_of(seed) for seed in seeds]), indices, keys, False)
    alone = FORMS["program"](functions, make_mesh(jax.devices()[:1]))
    for seed, found in zip(seeds, step.split(states), strict=True):
        inputs = BatchInputs(pool.images, pool.labels, indices[seed])
        expected, _ = alone(state_of(seed), inputs, seeds_step_test.keys_of(seed), False)
        tolerance = 1e-5 if stacked else 0
        np.testing.assert_allclose(found.params["kernel"], expected.params["kernel"], rtol=tolerance, atol=tolerance)


def everything(config: Any) -> Any:
    return dataclasses.replace(config, distillation="rslad", ema_decay=0.9, awp_gamma=0.01)


@pytest.mark.nightly
def test_a_run_goes_on_with_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student of the retrain is the small network; the teacher is the dense one. Mean and perturbation are on."""
    teachers = []

    def watched(*given: Any) -> Teacher:
        teachers.append(Teacher(*given))
        return teachers[-1]

    monkeypatch.setattr(pipeline, "Teacher", watched)
    config = tiny.tiny_config(train=everything(tiny.tiny_config().train))
    whole = tiny.run_and_watch(tmp_path / "whole", config, output=tiny.EVERY_STEP)
    folder = tiny.one_step_back(tmp_path / "whole", tmp_path / "run")
    again = tiny.run_and_watch(folder, config)
    assert set(again.began.values()) == {tiny.STEPS - 1}
    assert tiny.digests_of(folder) == tiny.digests_of(tmp_path / "whole")
    assert len(teachers) == 2
    jax.tree.map(np.testing.assert_array_equal, teachers[1].weights, whole.outcomes["pretrain"].weights)
    meta = folder / "checkpoints" / "retrain" / str(tiny.STEPS) / "meta" / "metadata"
    layout = json.loads(meta.read_text())["layout"]
    assert layout["train/teacher/params/conv1/kernel"] == "float32[5,5,1,2]"
    assert layout["train/params/conv1/kernel"] == layout["train/average/params/conv1/kernel"] == "float32[5,5,1,1]"


@pytest.mark.nightly
def test_several_seeds_end_as_each_alone(tmp_path: Path) -> None:
    config = dataclasses.replace(together_test.CONFIG, train=everything(together_test.CONFIG.train))
    done, failed = together_test.run_both(tmp_path, config)
    assert not failed
    for seed in (1, 2):
        alone = together_test.run_alone(tmp_path, seed, config)
        together_test.assert_as_alone(tmp_path, seed, done[seed], alone)


@pytest.mark.nightly
def test_without_admm_the_dense_network_before_the_cut_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = []
    monkeypatch.setattr(pipeline, "Teacher", lambda *given: teachers.append(Teacher(*given)) or teachers[-1])
    train = dataclasses.replace(tiny.tiny_config().train, distillation="rslad")
    run = tiny.run_and_watch(tmp_path / "run", tiny.tiny_config(train=train, admm=StageConfig(0)))
    assert len(teachers) == 1
    jax.tree.map(np.testing.assert_array_equal, teachers[0].weights, run.outcomes["pretrain"].weights)
    assert (run.starts["retrain"].params["conv1"]["kernel"] == 0).any()
