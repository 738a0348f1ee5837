"""Several runs that go on together: each is a generator, and those at the same step train by one `SeedsStep`.

    done, failed = run_together({0: run_training(...), 1: run_training(...)}, mesh)

The generators stop where a stage has steps left. Those of the earliest stage train first, and of these the ones that
are behind, up to the step at which the others wait. Runs whose networks have other shapes train one group after the
other. Validation, residuals, the log and the checkpoints are the hooks of each run alone. A run that fails, as by a
NaN, ends; the others go on.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.interrupt import Interrupted
from rap_jax._runtime.progress import Progress
from rap_jax.config import STAGES
from rap_jax.training.hooks import Checkpoints, ResidualsLog, Validation, make_residuals_fn, metrics_log
from rap_jax.training.input import PooledInput
from rap_jax.training.loop import Hooks, StateHook, run_steps, train_steps
from rap_jax.training.seeds_step import SeedsStep, make_seeds_step
from rap_jax.training.sharded_step import step_functions
from rap_jax.training.stage import StageParts, stage_inputs, stage_parts
from rap_jax.training.state import StageState, TrainState, step_keys
from rap_jax.training.task import Reached, StageTask, T, Training

Outcome = Reached | ValueError  # the end of a training, or the reason why it cannot go on


def run_together(runs: Mapping[int, Training[T]], mesh: Mesh) -> tuple[dict[int, T], dict[int, ValueError]]:
    """What the runs return, by seed, and the errors of those that failed.

    Args:
      runs: by seed; they have not begun. The input of each is a `PooledInput`, all of one pool.
      mesh: the devices, which share the runs.

    Raises:
      ValueError: a run cannot begin. Nothing is trained then.
      Interrupted: a signal came; every state is saved.
    """
    done, failed, waiting = dict[int, T](), dict[int, ValueError](), dict[int, StageTask]()

    def go_on(seed: int, advance: Callable[[], StageTask]) -> None:
        try:
            waiting[seed] = advance()
        except StopIteration as end:
            done[seed] = end.value
        except ValueError as error:
            failed[seed] = error

    with contextlib.ExitStack() as stack:
        for seed, run in runs.items():
            stack.enter_context(contextlib.closing(run))
            go_on(seed, run.__next__)
            if seed in failed:
                raise ValueError(f"Seed {seed}: {failed[seed]}") from failed[seed]
        while waiting:
            first = min((task.plan.stage for task in waiting.values()), key=STAGES.index)
            tasks = {seed: task for seed, task in waiting.items() if task.plan.stage == first}
            for seed, outcome in zip(tasks, train_tasks(list(tasks.values()), mesh), strict=True):
                del waiting[seed]
                go_on(seed, _continuation(runs[seed], outcome))
    return done, failed


def _continuation(run: Training[Any], outcome: Outcome) -> Callable[[], StageTask]:
    """What goes on with a run: its files are closed by the error that ends it."""
    return lambda: run.throw(outcome) if isinstance(outcome, ValueError) else run.send(outcome)


def train_tasks(tasks: Sequence[StageTask], mesh: Mesh) -> list[Outcome]:
    """Trains what is left of one stage of several runs: groups of equal shapes, one after the other.

    The sparsity sets are part of the program of ADMM, and may follow from the weights of a seed.
    """
    outcomes = dict[int, Outcome]()
    shape_of = lambda task: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (task.start, task.masks))
    specs_of = lambda task: task.context.specs if task.plan.stage == "admm" else None
    shapes = [str((shape_of(task), specs_of(task))) for task in tasks]
    for shape in dict.fromkeys(shapes):
        places = [place for place, other in enumerate(shapes) if other == shape]
        outcomes |= zip(places, _train_group([tasks[place] for place in places], mesh), strict=True)
    return [outcomes[place] for place in range(len(tasks))]


def _train_group(tasks: Sequence[StageTask], mesh: Mesh) -> list[Outcome]:
    """Trains runs of equal shapes; those that are behind go first, until they have reached the next one."""
    plan, context, start, masks, _, _ = tasks[0]
    parts = stage_parts(plan, context, start, masks)
    init = jax.jit(parts.init, out_shardings=parts.shardings)
    begin: Callable[[StageTask], Reached] = lambda task: Reached(
        0, init(task.start, task.masks, task.context.teacher_weights), 0.0
    )
    reached = {place: task.reached or begin(task) for place, task in enumerate(tasks)}
    failed = dict[int, ValueError]()
    while steps := {found.step for found in reached.values() if found.step < plan.num_steps}:
        first, until = min(steps), min(steps - {min(steps)}, default=plan.num_steps)
        behind = {place: found for place, found in reached.items() if found.step == first}
        now = [tasks[place]._replace(reached=found) for place, found in behind.items()]
        for place, outcome in zip(behind, _train_until(until, now, parts, mesh), strict=True):
            if isinstance(outcome, ValueError):
                failed[place] = outcome
                del reached[place]
            else:
                reached[place] = outcome
    return [failed.get(place) or reached[place] for place in range(len(tasks))]


def _train_until(until: int, tasks: Sequence[StageTask], parts: StageParts, mesh: Mesh) -> list[Outcome]:
    """Trains runs of equal shapes from the step that all have reached; each has a checkpoint of the step `until`."""
    plan, contexts = tasks[0].plan, [task.context for task in tasks]
    reached = [task.reached for task in tasks if task.reached is not None]
    first, seeds = reached[0].step, [context.config.seed for context in contexts]
    step = _make_step(tasks[0], parts, len(tasks), mesh)
    label = f"{contexts[0].config.name} {plan.stage}, {len(tasks)} seeds"
    with Progress(label, plan.num_steps, start=first) as progress:
        group = _Group(tasks, step, progress, until)
        group.begin()
        states = step.join([found.state.train for found in reached])
        keys = step.join([step_keys(seed, plan.stage) for seed in seeds])
        # Any: the trees of all seeds stand where a run alone has those of one.
        advance: Any = step.advance
        inputs: Any = _indices(tasks, first)
        taken = itertools.islice(train_steps(advance, states, inputs, keys, plan, first), until - first)
        # A group whose runs have all failed ends.
        going_on = itertools.takewhile(lambda _: len(group.failed) < len(tasks), taken)
        last = run_steps(going_on, group.hooks(), num_ahead=1)
        return group.outcomes(last.number, last.state)


def _make_step(task: StageTask, parts: StageParts, num_seeds: int, mesh: Mesh) -> SeedsStep:
    plan, context, _, masks, _, _ = task
    tx, teacher = parts.make_tx(masks), context.teacher_model
    functions = step_functions(context.model, tx, context.config.train, plan, context.mesh, teacher=teacher)
    return make_seeds_step(functions, _pooled(task).pool, num_seeds, mesh)


def _pooled(task: StageTask) -> PooledInput:
    train = task.context.train
    if not isinstance(train, PooledInput):
        raise ValueError(f"train is a {type(train).__name__}; expected a PooledInput, which several seeds can share.")
    return train


def _indices(tasks: Sequence[StageTask], first: int) -> Iterator[np.ndarray]:
    """The places of each step's batches in the pool, int32 [num_seeds, batch_size]."""
    inputs = [stage_inputs(task.plan, task.context, first) for task in tasks]
    return (np.stack([np.asarray(each.indices) for each in batches]) for batches in zip(*inputs, strict=True))


class _Group:
    """The hooks of runs that train together, and which of the runs have failed."""

    def __init__(self, tasks: Sequence[StageTask], step: SeedsStep, progress: Progress, until: int):
        self._tasks, self._step, self._progress, self._until = tasks, step, progress, until
        self.failed = dict[int, ValueError]()
        self._interrupted: Interrupted | None = None
        self._split: tuple[int, list[TrainState]] = (-1, [])
        residuals_fn = make_residuals_fn(tasks[0].context)
        self._metrics = [metrics_log(task.plan, task.context) for task in tasks]
        self._residuals = [ResidualsLog(task.plan, task.context, residuals_fn) for task in tasks]
        self._validations, self._checkpoints = list[Validation](), list[Checkpoints]()
        for plan, context, _, _, reached, manager in tasks:
            assert reached is not None
            validation = Validation(plan, context, reached.state.kept, self._say_of(context.config.seed))
            share = 1 / len(tasks)  # of the time
            self._validations.append(validation)
            self._checkpoints.append(Checkpoints(plan, context, manager, reached.seconds, validation, share))

    def begin(self) -> None:
        """Says where the runs go on, or logs the residuals before the first step of ADMM."""
        for task, log_residuals in zip(self._tasks, self._residuals, strict=True):
            assert task.reached is not None
            if task.reached.step:
                say = self._say_of(task.context.config.seed)
                say(f"{task.plan.stage}: going on from the checkpoint of step {task.reached.step}")
            elif task.plan.dual_interval:
                log_residuals(0, task.reached.state.train)

    def hooks(self) -> Hooks:
        """Hooks on metrics and states of all runs."""
        on_state = (
            _OfEach(self, self._residuals),
            _OfEach(self, self._validations),
            _OfEach(self, self._checkpoints, always_at=self._until),
        )
        return Hooks((self._see_metrics,), on_state)

    def call_each(self, function: Callable[[int], None]) -> None:
        """Calls it with the place of each run that has not failed; a signal takes effect after the last one."""
        for place in range(len(self._tasks)):
            if place in self.failed:
                continue
            try:
                function(place)
            except ValueError as error:
                self.failed[place] = error
                self._say_of(self._tasks[place].context.config.seed)(f"FAILED: {error}")
            except Interrupted as interrupted:
                self._interrupted = interrupted
        if self._interrupted is not None:
            raise self._interrupted

    def states(self, number: int, joined: Any) -> list[TrainState]:
        """The states of the runs; taken apart once for all hooks of a step."""
        if self._split[0] != number:
            self._split = (number, self._step.split(joined))
        return self._split[1]

    def outcomes(self, number: int, joined: Any) -> list[Outcome]:
        """What the runs have reached."""
        if len(self.failed) == len(self._tasks):
            return [self.failed[place] for place in range(len(self._tasks))]
        ends = zip(self.states(number, joined), self._validations, self._checkpoints, strict=True)
        reached = [
            Reached(number, StageState(state, validation.kept), checkpoints.seconds)
            for state, validation, checkpoints in ends
        ]
        return [self.failed.get(place) or found for place, found in enumerate(reached)]

    def _see_metrics(self, number: int, metrics: Any) -> None:
        each = self._step.split_metrics(metrics)
        self.call_each(lambda place: self._metrics[place](number, each[place]))
        good = [found for place, found in enumerate(each) if place not in self.failed]
        if good:
            loss, accuracy = (np.mean([getattr(found, name) for found in good]) for name in ("loss", "accuracy"))
            self._progress.update(number, f"loss {loss:.3f}  accuracy {accuracy:.1%}")

    def _say_of(self, seed: int) -> Callable[[str], None]:
        return lambda line: self._progress.line(f"seed {seed}: {line}")


class _OfEach:
    """A hook: calls that of each run, all of them after a step after which one is due."""

    def __init__(self, group: _Group, hooks: Sequence[StateHook], always_at: int = -1):
        self._group, self._hooks, self._always_at = group, hooks, always_at

    def is_due(self, number: int) -> bool:
        due = [hook.is_due(number) for hook in self._hooks]
        return any(due) or number == self._always_at

    def __call__(self, number: int, state: Any) -> None:
        states = self._group.states(number, state)
        self._group.call_each(lambda place: self._hooks[place](number, states[place]))
