"""The training loop: what is dispatched before what is fetched, and that a run does not depend on it."""

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rap_jax._runtime.interrupt import Interrupted
from rap_jax.config import StageConfig
from rap_jax.data.batches import BatchInputs
from rap_jax.training import pipeline
from rap_jax.training import stage as stage_lib
from rap_jax.training.loop import Hooks, Step, run_steps, train_steps
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.step import StepMetrics

Events = list[tuple[str, int]]


class EverySteps:
    """A hook on the state after every `interval` steps."""

    def __init__(self, interval: int, call: Callable[[int, Any], None]):
        self._interval, self._call = interval, call

    def is_due(self, number: int) -> bool:
        return number % self._interval == 0

    def __call__(self, number: int, state: Any) -> None:
        self._call(number, state)


def steps_of(events: Events, number: int) -> Iterator[Step]:
    """Steps whose state and metrics are their number."""
    for step in range(1, number + 1):
        events.append(("dispatch", step))
        state: Any = step
        yield Step(step, state, StepMetrics(*[jnp.float32(step)] * len(StepMetrics._fields)))


def run(number: int, num_ahead: int, interval: int, stop: Callable[[int], None] = lambda number: None) -> Events:
    events: Events = []

    def on_metrics(step: int, metrics: StepMetrics) -> None:
        assert metrics.loss == step and isinstance(metrics.loss, np.ndarray)
        stop(step)
        events.append(("metrics", step))

    def on_state(step: int, state: Any) -> None:
        assert state == step
        events.append(("state", step))

    try:
        hooks = Hooks((on_metrics,), (EverySteps(interval, on_state),))
        assert run_steps(steps_of(events, number), hooks, num_ahead=num_ahead).number == number
    except ValueError:
        events.append(("stopped", 0))
    return events


def test_waiting_fetches_each_step_before_the_next() -> None:
    assert run(2, 0, 2) == [("dispatch", 1), ("metrics", 1), ("dispatch", 2), ("metrics", 2), ("state", 2)]


def test_ahead_the_next_step_is_dispatched_first_but_for_a_hook_on_the_state() -> None:
    assert run(5, 1, 3) == [
        ("dispatch", 1),
        *[("dispatch", 2), ("metrics", 1)],
        *[("dispatch", 3), ("metrics", 2), ("metrics", 3), ("state", 3)],
        ("dispatch", 4),
        *[("dispatch", 5), ("metrics", 4), ("metrics", 5)],
    ]


@pytest.mark.parametrize("num_ahead", [0, 1])
@pytest.mark.parametrize("bad", [2, 3])
def test_bad_metrics_stop_the_loop_before_the_state_is_used(num_ahead: int, bad: int) -> None:
    def stop(number: int) -> None:
        if number == bad:
            raise ValueError("NaN")

    events = run(5, num_ahead, 3, stop)
    assert events[-1] == ("stopped", 0)
    assert ("state", 3) not in events and ("dispatch", 4) not in events
    assert [step for name, step in events if name == "metrics"] == list(range(1, bad))


def test_steps_know_their_numbers_and_the_dual_steps() -> None:
    dual: list[bool] = []

    def train_step(state: Any, inputs: BatchInputs, keys: Any, dual_step: bool) -> Any:
        dual.append(dual_step)
        return state + 1, None

    inputs: Any = [None] * 5
    state: Any = 10
    plan = StagePlan("admm", 9, 3, lambda step: 0.1, dual_interval=2)
    steps = train_steps(train_step, state, inputs, None, plan, done=3)  # type: ignore[arg-type]
    assert dual == []  # nothing runs before it is asked for
    assert [(step.number, step.state) for step in steps] == [(4, 11), (5, 12), (6, 13), (7, 14), (8, 15)]
    assert dual == [False, True, False, True, False]


@pytest.mark.e2e
def test_a_run_has_the_same_bits_with_a_step_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, given = list[int](), {"devices": jax.devices()[:1], "output": tiny.EVERY_LINE}
    watched = lambda *steps, num_ahead: (ahead.append(num_ahead), run_steps(*steps, num_ahead=num_ahead))[1]
    monkeypatch.setattr(stage_lib, "run_steps", watched)
    pipeline.run(tiny.tiny_config(), tiny.tiny_dataset(), tmp_path / "ahead", **given)
    monkeypatch.setattr(stage_lib, "has_several_cpu_devices", lambda mesh: True)
    pipeline.run(tiny.tiny_config(), tiny.tiny_dataset(), tmp_path / "waiting", **given)
    assert ahead == [1, 1, 1, 0, 0, 0]
    assert tiny.digests_of(tmp_path / "ahead") == tiny.digests_of(tmp_path / "waiting")
    assert tiny.metrics_of(tmp_path / "ahead") == tiny.metrics_of(tmp_path / "waiting")


@pytest.mark.e2e
def test_a_signal_with_a_step_in_flight_stops_at_its_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(tiny.tiny_config(), admm=StageConfig(0), retrain=StageConfig(0))
    given = {"devices": jax.devices()[:1], "output": tiny.EVERY_LINE}
    go = lambda name: pipeline.run(config, tiny.tiny_dataset(), tmp_path / name, **given)
    go("whole")

    def with_signal(*arguments: Any) -> Iterator[Step]:
        for step in train_steps(*arguments):
            if step.number == 5:
                signal.raise_signal(signal.SIGTERM)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(stage_lib, "train_steps", with_signal)
        with pytest.raises(Interrupted, match="SIGTERM in pretrain after step 5 of 9"):
            go("run")
    checkpoints = tmp_path / "run" / "checkpoints" / "pretrain"
    assert [path.name for path in checkpoints.iterdir()] == ["5"]
    assert tiny.metrics_of(tmp_path / "run")[-1]["step"] == 5
    go("run")
    last = lambda name: (tmp_path / name / "checkpoints/pretrain/9/meta/metadata").read_text()
    assert json.loads(last("run"))["sha256"] == json.loads(last("whole"))["sha256"]
    assert tiny.metrics_of(tmp_path / "run") == tiny.metrics_of(tmp_path / "whole")
