"""The mean of the weights: its numbers, where it is scored, that it stays masked, and that a run of it goes on."""

import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from rap_jax._runtime.mesh import first_device_sharding, gather, make_mesh, replicated, state_shardings
from rap_jax.config import AttackConfig, TrainConfig
from rap_jax.data.batches import BatchInputs
from rap_jax.evaluation.accuracy import Accuracy
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.pruning.masks import keep_masked
from rap_jax.training.hooks import Validation
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.sharded_step import step_as_program, step_in_programs
from rap_jax.training.state import (
    Kept,
    StepKeys,
    TrainState,
    from_stored,
    has_average,
    init_stage_state,
    move_average,
    stored,
)
from rap_jax.training.step import StepFunctions

DECAY = 0.3  # above that of the first update, 2/11, and of the second, 3/12, and below that of the fourth, 5/14
TRAIN = TrainConfig(AttackConfig("l2", epsilon=0.1, step_size=0.05, num_steps=1), ema_decay=DECAY)
PLAN = StagePlan("retrain", 100, 10, lambda step: 0.5)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 64, 40).astype(np.int32)
# Large enough to be sharded; a third of it is pruned.
KERNEL = jax.random.normal(jax.random.key(0), (64, 64)).at[:, ::3].set(0)
KEYS = StepKeys(jax.random.key(1), jax.random.key(2))


def linear_apply(params: Any, batch_stats: Any, images: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    """A linear model; its statistics are the logits' mean."""
    logits = images.reshape(len(images), -1) @ params["kernel"]
    return logits, {"mean": logits.mean(0)} if train else batch_stats


MODEL = Model(lambda key: ({}, {}), linear_apply, (8, 8, 1), 64, "dense")


def by_hand(start: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    mean = np.asarray(start, np.float64)
    for number, value in enumerate(values, start=1):
        d = min(DECAY, (1 + number) / (10 + number))
        mean = d * mean + (1 - d) * np.asarray(value, np.float64)
    return mean


@pytest.mark.parametrize(
    ("num_devices", "num_model_shards", "form"),
    [(1, 1, step_as_program), (8, 1, step_as_program), (4, 2, step_as_program), (8, 1, step_in_programs)],
)
def test_the_mean_of_some_steps_equals_numpy(num_devices: int, num_model_shards: int, form: Any) -> None:
    mesh = make_mesh(jax.devices()[:num_devices], num_model_shards=num_model_shards)
    masks = {"kernel": KERNEL != 0}
    tx = optax.with_extra_args_support(optax.chain(optax.sgd(0.5, momentum=0.9), keep_masked(masks)))
    start = Weights({"kernel": KERNEL}, {"mean": jnp.zeros(64)})
    state = init_stage_state(start, tx, with_average=True).train
    place = first_device_sharding(mesh) if form is step_in_programs else replicated(mesh)
    shardings = state_shardings(state, mesh, unsharded=place)
    pieces = state_shardings(state.params, mesh)["kernel"].shard_shape((64, 64))
    state, split = jax.device_put(state, shardings), jax.device_put((IMAGES, LABELS), place)
    step = form(StepFunctions(MODEL, tx, TRAIN, PLAN, functools.partial(gather, mesh=mesh)), mesh)
    kernels, means = [], []
    for number in range(5):
        indices = np.arange(number, number + 16, dtype=np.int32)
        state, _ = step(state, BatchInputs(*split, indices), KEYS, False)
        kernels.append(np.asarray(state.params["kernel"]))
        means.append(np.asarray(state.batch_stats["mean"]))
    assert np.abs(kernels[-1] - kernels[0]).max() > 0.01
    np.testing.assert_allclose(state.average.params["kernel"], by_hand(KERNEL, kernels), atol=1e-6)
    np.testing.assert_allclose(state.average.batch_stats["mean"], by_hand(np.zeros(64), means), atol=1e-6)
    zeros = np.asarray(state.average.params["kernel"]) == 0
    np.testing.assert_array_equal(zeros, np.asarray(KERNEL) == 0)
    assert state.average.params["kernel"].addressable_shards[0].data.shape == pieces


def test_without_it_there_is_nothing() -> None:
    assert move_average((), Weights({"w": jnp.ones(2)}, {}), 0.0, jnp.int32(1)) == ()
    state = init_stage_state(Weights({"w": jnp.ones(2)}, {}), optax.sgd(0.1)).train
    assert state.average == () and state.scored.params is state.params
    assert [has_average(TRAIN, stage) for stage in tiny.STAGES] == [True, False, True]
    assert not has_average(dataclasses.replace(TRAIN, ema_decay=0.0), "pretrain")


def test_a_checkpoint_without_it_is_that_of_earlier_versions() -> None:
    """Which wrote down the names of the fields that they knew, empty ones too."""
    start, tx = Weights({"w": jnp.ones(2)}, {}), optax.sgd(0.1)
    without, with_mean = (init_stage_state(start, tx, with_average=on) for on in (False, True))
    assert stored(without).train._fields == ("step", "params", "batch_stats", "opt_state", "perturbation")
    for state in (without, with_mean):
        assert jax.tree.structure(from_stored(stored(state))) == jax.tree.structure(state)
    assert "average" in stored(with_mean).train._fields


@pytest.mark.parametrize(("selection", "judge"), [("pgd", "PGD-7"), ("strong", "APGD-T and Square")])
def test_the_mean_is_scored_and_kept(selection: str, judge: str) -> None:
    scored, said = list[Any](), list[str]()

    def select(params: Any, batch_stats: Any, split: Any, key: Any) -> Accuracy:
        scored.append((params, batch_stats))
        return Accuracy(5, 5, 10, AttackConfig())

    context: Any = SimpleNamespace(
        model=MODEL,
        config=SimpleNamespace(select_attack=AttackConfig(num_steps=7), selection=selection, seed=0),
        selector=lambda model: select,
        mesh=make_mesh(jax.devices()[:1]),
        validation=None,
        folder=SimpleNamespace(log=lambda line: None),
    )
    last, mean = (Weights({"kernel": jnp.full(3, value)}, {"mean": jnp.full(3, -value)}) for value in (1.0, 2.0))
    validation = Validation(PLAN, context, Kept(*last, jnp.float32(-1), jnp.int32(0)), said.append)
    validation(10, TrainState(jnp.int32(10), *last, (), average=mean))
    assert float(scored[0][0]["kernel"][0]) == 2 and float(scored[0][1]["mean"][0]) == -2
    assert float(validation.kept.params["kernel"][0]) == 2 and float(validation.kept.batch_stats["mean"][0]) == -2
    assert validation.kept.params["kernel"] is not mean.params["kernel"]  # which the next step donates
    assert said == [f"retrain epoch 1/10: validation natural 50.00%, robust 50.00% under {judge}"]


@pytest.mark.nightly
def test_a_run_goes_on_with_its_mean(tmp_path: Path) -> None:
    """Through all stages; the mean stays masked where the whole network is retrained."""
    train = dataclasses.replace(tiny.tiny_config().train, ema_decay=0.9)
    config = tiny.tiny_config(train=train, small_retrain=False)
    whole = tiny.run_and_watch(tmp_path / "whole", config, output=tiny.EVERY_STEP)
    folder = tiny.one_step_back(tmp_path / "whole", tmp_path / "run")
    again = tiny.run_and_watch(folder, config)
    assert set(again.began.values()) == {tiny.STEPS - 1}
    assert tiny.digests_of(folder) == tiny.digests_of(tmp_path / "whole")
    layouts = {
        stage: json.loads((folder / "checkpoints" / stage / str(tiny.STEPS) / "meta" / "metadata").read_text())[
            "layout"
        ]
        for stage in tiny.STAGES
    }
    has_mean = {stage: any("train/average" in name for name in layout) for stage, layout in layouts.items()}
    assert has_mean == {"pretrain": True, "admm": False, "retrain": True}
    start, end = (tree["retrain"] for tree in (whole.starts, whole.outcomes))
    for before, after in zip(jax.tree.leaves(start.params), jax.tree.leaves(end.weights.params), strict=True):
        assert (after[before == 0] == 0).all()
    kernel = start.params["conv1"]["kernel"]
    assert 0.4 < (kernel == 0).mean() < 0.6 and (end.weights.params["conv1"]["kernel"] != kernel).any()
