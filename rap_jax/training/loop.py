"""The training loop: a generator of steps, and the hooks that are called with what it yields.

    steps = train_steps(train_step, state, inputs, keys, plan)
    last = run_steps(steps, Hooks(on_metrics=(log,), on_state=(validation, checkpoints)), num_ahead=1)

A step is dispatched, not waited for. Fetching its metrics waits for it, so with `num_ahead` 1 those of step k are
fetched after step k + 1 has been dispatched, and the devices are never idle in between. A hook on the state is called
before the next step is dispatched, because that donates the state, and after the metrics of all steps so far have been
seen: a hook on the metrics that raises, as for a NaN, comes first.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import jax

from rap_jax.data.batches import BatchInputs
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.sharded_step import TrainStep
from rap_jax.training.state import StepKeys, TrainState
from rap_jax.training.step import StepMetrics


class Step(NamedTuple):
    """A step that has been dispatched."""

    number: int  # updates done in this stage, with this one
    state: TrainState  # after the update; the next step donates it
    metrics: StepMetrics  # on the devices


class StateHook(Protocol):
    """A hook on the state, called after the steps that it names."""

    def is_due(self, number: int) -> bool:
        """Whether it is to be called after this step; asked once for each, in their order."""

    def __call__(self, number: int, state: TrainState) -> None: ...


MetricsHook = Callable[[int, StepMetrics], None]


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Functions that are called while the steps go on, each group in its order."""

    on_metrics: tuple[MetricsHook, ...] = ()  # with the metrics of every step as NumPy scalars, in order of the steps
    on_state: tuple[StateHook, ...] = ()


def train_steps(
    train_step: TrainStep, state: TrainState, inputs: Iterable[BatchInputs], keys: StepKeys, plan: StagePlan, done: int
) -> Iterator[Step]:
    """Dispatches one step for each of the inputs, when it is asked for.

    Args:
      state: after `done` updates; it is donated.
    """
    for number, batch in enumerate(inputs, start=done):
        state, metrics = train_step(state, batch, keys, plan.is_dual_step(number))
        yield Step(number + 1, state, metrics)


def run_steps(steps: Iterable[Step], hooks: Hooks, *, num_ahead: int) -> Step:
    """Goes through the steps and calls the hooks; returns the last step.

    Args:
      steps: from `train_steps`; 1 or more.
      num_ahead: steps that may have been dispatched after the one whose metrics are fetched. 0 waits for each step.
    """
    pending: deque[tuple[int, StepMetrics]] = deque()

    def report(num_left: int) -> None:
        while len(pending) > num_left:
            number, metrics = pending.popleft()
            fetched = jax.device_get(metrics)
            for hook in hooks.on_metrics:
                hook(number, fetched)

    for step in steps:
        pending.append((step.number, step.metrics))
        report(num_ahead)
        for hook in hooks.on_state:
            if hook.is_due(step.number):
                report(0)
                hook(step.number, step.state)
    report(0)
    return step
