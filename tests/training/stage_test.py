"""A stage keeps the model that scored best, and stops before it saves anything that is not finite."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from rap_jax.config import STAGES, AttackConfig, OptimizerConfig, StageConfig
from rap_jax.evaluation.accuracy import Accuracy
from rap_jax.training import pipeline
from rap_jax.training import stage as stage_lib
from rap_jax.training.optimizer import plan_stage, plan_stages
from rap_jax.training.sharded_step import StepMetrics

pytestmark = pytest.mark.e2e

CONFIG = tiny.tiny_config()


def assert_same(actual: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


SCORES = {"pretrain": (0.3, 0.7, 0.7), "admm": (0.9, 0.1, 0.2), "retrain": (0.7, 0.2, 0.7)}


def test_kept_weights_are_those_that_were_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[Any] = []
    reported: list[tuple[int, Any]] = []
    scores = iter([score for stage in STAGES for score in SCORES[stage]])

    def make_evaluator(model: Any, attack: AttackConfig, mesh: Any, *, batch_size: int) -> Any:
        def select(params: Any, batch_stats: Any, split: Any, key: Any) -> Accuracy:
            scored.append(jax.device_get(params))
            right = round(10 * next(scores))
            return Accuracy(right, right, 10, attack)

        def report(params: Any, batch_stats: Any, split: Any, key: Any, on_batch: Any) -> Accuracy:
            reported.append((len(split.labels), jax.device_get(params)))
            return Accuracy(1, 1, 10, attack)

        return {CONFIG.select_attack: select, CONFIG.report_attack: report}[attack]

    monkeypatch.setattr(pipeline, "make_evaluator", make_evaluator)
    outcomes = tiny.run_and_watch(tmp_path / "run", tiny.tiny_config(small_retrain=False)).outcomes
    assert [outcomes[stage].step for stage in STAGES] == [6, 9, 3]  # of equal scores the first
    for stage, index in zip(STAGES, (1, 5, 6), strict=True):
        assert_same(outcomes[stage].weights.params, scored[index])
    sizes = [size for size, _ in reported]
    assert sizes == [40, 40, 40, 40, 40, 60]  # the test split once, at the end
    assert_same(reported[-1][1], scored[6])


def test_batches_and_dual_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[np.ndarray] = []
    dual_steps: list[bool] = []

    def train_step(state: Any, inputs: Any, keys: Any, dual_step: bool) -> Any:
        batches.append(inputs.indices)
        dual_steps.append(dual_step)
        return state, StepMetrics(*np.ones(len(StepMetrics._fields)))

    monkeypatch.setattr(stage_lib, "make_train_step", lambda *arguments, **named: train_step)
    monkeypatch.setattr(pipeline, "make_evaluator", lambda _, attack, *a, **b: lambda *c: Accuracy(5, 5, 10, attack))
    tiny.run_and_watch(tmp_path / "run")
    assert {batch.shape for batch in batches} == {(48,)} and len(batches) == 3 * tiny.STEPS
    # 5 batches are one pass over the 240 images; every pass and every stage has an order of its own.
    passes = [np.concatenate(batches[start : start + 5]) for start in (0, 9, 18)]
    for order in passes:
        np.testing.assert_array_equal(np.sort(order), np.arange(240))
    second = np.concatenate(batches[5:9])
    assert len(set(second)) == 192
    assert len({order.tobytes() for order in (second, *(order[:192] for order in passes))}) == 4
    # Half an epoch of 3 steps is 2 steps; the first dual step comes after 2 updates.
    assert [number for number, dual_step in enumerate(dual_steps) if dual_step] == [9 + 2, 9 + 4, 9 + 6, 9 + 8]


def test_lengths_in_epochs_and_in_steps() -> None:
    count_steps = dataclasses.replace(CONFIG.prune, dual_interval=4.0, dual_interval_unit="steps")
    config = dataclasses.replace(CONFIG, steps_per_epoch=0, pretrain=StageConfig(2, epsilon_ramp_epochs=0.5))
    lengths = lambda plan: (plan.steps_per_epoch, plan.num_steps, plan.dual_interval, plan.ramp_steps)
    assert lengths(plan_stage(config, "pretrain", 500)) == (10, 20, 0, 5)  # 500 images are 10 batches of 48
    assert lengths(plan_stage(config, "admm", 500)) == (10, 30, 5, 0)
    assert plan_stage(dataclasses.replace(config, prune=count_steps), "admm", 500).dual_interval == 4
    assert [plan.stage for plan in plan_stages(dataclasses.replace(config, admm=StageConfig(0)), 500)] == [
        "pretrain",
        "retrain",
    ]
    huge = dataclasses.replace(CONFIG.prune, dual_interval=1e308)
    with pytest.raises(ValueError, match="dual_interval is 1e\\+308; expected less than"):
        plan_stage(dataclasses.replace(config, prune=huge), "admm", 500)
    endless = dataclasses.replace(CONFIG, pretrain=StageConfig(2**30))
    with pytest.raises(ValueError, match=r"pretrain_epochs is 1073741824; expected fewer than 2147483648 steps"):
        plan_stage(endless, "pretrain", 500)


@pytest.mark.parametrize(
    ("learning_rate", "steps_per_epoch", "message", "last_good"),
    [
        (1e15, 3, "Loss is nan.* at step 2 of pretrain; expected finite numbers. The last good checkpoint is kept", 1),
        (
            1e25,
            1,
            r"weight norm inf at step 1 of pretrain; .* No checkpoint is in",
            0,
        ),  # before it is saved, and before it is validated
    ],
)
def test_nan_names_its_step_and_leaves_the_checkpoint_before(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    learning_rate: float,
    steps_per_epoch: int,
    message: str,
    last_good: int,
) -> None:
    huge = StageConfig(2, OptimizerConfig(name="sgd", learning_rate=learning_rate, schedule="constant"))
    config = dataclasses.replace(CONFIG, pretrain=huge, steps_per_epoch=steps_per_epoch)
    run = lambda: pipeline.run(config, tiny.tiny_dataset(), tmp_path / "run", output=tiny.EVERY_STEP)
    with pytest.raises(ValueError, match=message) as first:
        run()
    begun_at: list[int] = []
    train = stage_lib.train_stage
    monkeypatch.setattr(stage_lib, "train_stage", lambda *given: (begun_at.append(given[3].step), train(*given))[1])
    with pytest.raises(ValueError, match=message) as second:  # from the checkpoint, which is whole, and unlocked
        run()
    assert str(second.value) == str(first.value) and begun_at == [last_good]
    assert {m["step"] for m in tiny.metrics_of(tmp_path / "run")} == set(range(1, last_good + 1))


def test_validation_that_fails_names_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def select(*arguments: Any) -> Accuracy:
        raise ValueError("3 adversarial images are outside.")

    monkeypatch.setattr(pipeline, "make_evaluator", lambda *arguments, batch_size: select)
    with pytest.raises(ValueError, match="Validation after step 3 of pretrain failed: 3 adversarial images"):
        pipeline.run(CONFIG, tiny.tiny_dataset(), tmp_path / "run")


def test_learning_rate_is_set_back_at_each_dual_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "make_evaluator", lambda _, attack, *a, **b: lambda *c: Accuracy(5, 5, 10, attack))
    prune = dataclasses.replace(CONFIG.prune, reset_learning_rate=True, dual_interval=1.0)
    falling = OptimizerConfig(learning_rate=0.01, schedule="step", step_epochs=(2 / 3,))
    config = dataclasses.replace(CONFIG, prune=prune, admm=StageConfig(3, falling))
    pipeline.run(config, tiny.tiny_dataset(), tmp_path / "run", output=tiny.EVERY_LINE)
    lines = [m for m in tiny.metrics_of(tmp_path / "run") if m["kind"] == "train"]
    rates = {stage: [m["learning_rate"] for m in lines if m["stage"] == stage] for stage in STAGES}
    # Epochs of 3 steps, a dual step at the first of each but the first.
    assert rates["admm"] == pytest.approx([0.01, 0.01, 0.001] * 3)
    assert rates["pretrain"] == sorted(rates["pretrain"], reverse=True)
