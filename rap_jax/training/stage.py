"""One stage of a run: its steps, validation after each epoch, and checkpoints to go on from.

    plan = plan_stage(config, "pretrain", num_examples)
    result = run_stage(plan, context, start)

Whatever happens to the process, the same call goes on where the last checkpoint was and ends with the same weights:
batches and attacks follow from the seed and the step alone.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from rap_jax._runtime.interrupt import Interrupt, Interrupted
from rap_jax._runtime.mesh import (
    DeviceSplit,
    first_device_sharding,
    gather,
    has_several_cpu_devices,
    put,
    state_shardings,
)
from rap_jax._runtime.processes import SteadyQuestion
from rap_jax._runtime.progress import Progress
from rap_jax.compaction import compaction_plan, expand, shrink
from rap_jax.config import OutputConfig, RunConfig
from rap_jax.data.batches import BatchInputs
from rap_jax.evaluation.accuracy import Evaluator, make_evaluator
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.pruning import specs as specs_lib
from rap_jax.pruning.admm import find_admm_state, residuals
from rap_jax.pruning.layers import path_name
from rap_jax.pruning.specs import Specs
from rap_jax.runs import checkpoint
from rap_jax.runs.folder import RunFolder
from rap_jax.training.input import Order, TrainInput
from rap_jax.training.loop import Hooks, MetricsHook, run_steps, train_steps
from rap_jax.training.optimizer import StagePlan, stage_optimizer
from rap_jax.training.sharded_step import TrainStep, make_train_step
from rap_jax.training.state import Kept, StageState, TrainState, stage_init, step_keys, stream_key
from rap_jax.training.step import StepMetrics


@dataclasses.dataclass(frozen=True)
class StageContext:
    """The settings, the network, the data and the folder of a run, shared by its stages."""

    config: RunConfig
    output: OutputConfig
    model: Model
    mesh: Mesh
    train: TrainInput
    validation: DeviceSplit
    select: Evaluator  # scores weights on validation
    specs: Specs
    folder: RunFolder
    interrupt: Interrupt


class StageResult(NamedTuple):
    """The end of a stage."""

    weights: Weights  # for the next stage
    step: int  # updates after which they were reached
    seconds: float  # spent, over all calls


class Reached(NamedTuple):
    """A stage under way."""

    step: int  # updates done
    state: StageState
    seconds: float  # spent so far, over all calls


def run_stage(
    plan: StagePlan, context: StageContext, start: Weights, masks: chex.ArrayTree | None = None
) -> StageResult:
    """Trains one stage from `start`, or from its last checkpoint, to its end.

    Pretrain and retrain return the model of best validation score, ADMM its last one.

    Args:
      masks: False where a weight has to stay zero, bool tree like the params; None if none has.

    Raises:
      ValueError: the loss is NaN or infinite (the last good checkpoint stays), or every checkpoint is damaged.
      Interrupted: a signal came; the state is saved.
    """
    make_tx = stage_optimizer(plan, context.config, start.params, context.specs, context.mesh)
    init = stage_init(make_tx, context.config, context.model.input_shape)
    shapes = jax.eval_shape(init, start, masks)
    shardings = state_shardings(shapes, context.mesh)
    manager = checkpoint.open_checkpoints(context.folder.checkpoints(plan.stage))
    reached = restore_stage(manager, checkpoint.abstract_like(shapes, shardings))
    if reached is None:
        reached = Reached(0, jax.jit(init, out_shardings=shardings)(start, masks), 0.0)
    if reached.step < plan.num_steps:
        context.folder.forget_metrics_after(plan.stage, reached.step or -1)
        train_step = make_train_step(context.model, make_tx(masks), context.config.train, plan, context.mesh)
        reached = train_stage(plan, context, train_step, reached, manager)
    manager.close()
    train, kept = reached.state
    last, best = Weights(train.params, train.batch_stats), Weights(kept.params, kept.batch_stats)
    weights, step = (last, reached.step) if plan.stage == "admm" else (best, int(kept.step))
    return StageResult(jax.device_put(weights, first_device_sharding(context.mesh)), step, reached.seconds)


def restore_stage(manager: ocp.CheckpointManager, template: Any) -> Reached | None:
    """The last good checkpoint, if there is one."""
    restored = checkpoint.restore_latest(manager, template)
    return None if restored is None else Reached(restored.step, restored.state, float(restored.meta["seconds"]))


def train_stage(
    plan: StagePlan, context: StageContext, train_step: TrainStep, reached: Reached, manager: ocp.CheckpointManager
) -> Reached:
    """Takes the steps that are left, 1 or more. The checkpoint of the last step is always written."""
    keys, inputs = step_keys(context.config.seed, plan.stage), stage_inputs(plan, context, reached.step)
    label = f"{context.config.name} {plan.stage}"
    with Progress(label, plan.num_steps, start=reached.step) as progress:
        log_residuals = _ResidualsLog(plan, context)
        if reached.step:
            progress.line(f"{plan.stage}: going on from the checkpoint of step {reached.step}")
        elif plan.stage == "admm":
            log_residuals(0, reached.state.train)
        validation = _Validation(plan, context, reached.state.kept, progress.line)
        checkpoints = _Checkpoints(plan, context, manager, reached.seconds, validation)
        hooks = Hooks(
            on_metrics=(_metrics_hook(plan, context, progress),),
            on_state=(log_residuals, validation, checkpoints),
        )
        steps = train_steps(train_step, reached.state.train, inputs, keys, plan, reached.step)
        last = run_steps(steps, hooks, num_ahead=0 if has_several_cpu_devices(context.mesh) else 1)
    return Reached(last.number, StageState(last.state, validation.kept), checkpoints.seconds)


def stage_inputs(plan: StagePlan, context: StageContext, first: int) -> Iterator[BatchInputs]:
    """The inputs of each step after `first` updates."""
    config, train = context.config, context.train
    key = stream_key(config.seed, "order", plan.stage)
    order = Order(key, len(train.labels), config.batch_size, config.train.updates_per_batch)
    return train.batches(order, range(first, plan.num_steps))


def _metrics_hook(plan: StagePlan, context: StageContext, progress: Progress) -> MetricsHook:
    """Refuses NaN, logs every so many steps, and shows the progress."""

    def hook(number: int, metrics: StepMetrics) -> None:
        if not all(math.isfinite(x) for x in (metrics.loss, metrics.gradient_norm, metrics.weight_norm)):
            raise ValueError(
                f"Loss is {metrics.loss}, gradient norm {metrics.gradient_norm} and weight norm {metrics.weight_norm} "
                f"at step {number} of {plan.stage}; expected finite numbers. The last good checkpoint is kept in "
                f"{context.folder.checkpoints(plan.stage)}. Try a smaller learning rate, or a smaller rho, in a new "
                f"--out_dir."
            )
        if number % context.output.log_every_steps == 0 or number == plan.num_steps:
            context.folder.log(_line(plan, "train", number) | jax.tree.map(float, metrics)._asdict())
        progress.update(number, f"loss {metrics.loss:.3f}  accuracy {metrics.accuracy:.1%}")

    return hook


def _line(plan: StagePlan, kind: str, number: int) -> dict[str, Any]:
    """The start of a line of metrics.jsonl."""
    return {"kind": kind, "stage": plan.stage, "step": number, "epoch": number / plan.steps_per_epoch}


class _ResidualsLog:
    """A hook: logs distance, residuals and rho of every layer after a dual step and at the end of the ADMM stage."""

    def __init__(self, plan: StagePlan, context: StageContext):
        self._plan, self._context = plan, context
        project_fn = lambda weights: specs_lib.project_tree(context.specs, gather(weights, context.mesh))
        self._residuals = jax.jit(lambda admm_state, weights: residuals(admm_state, weights, project_fn))

    def is_due(self, number: int) -> bool:
        at_end = number == self._plan.num_steps
        return self._plan.stage == "admm" and (self._plan.is_dual_step(number - 1) or at_end)

    def __call__(self, number: int, state: TrainState) -> None:
        specs = self._context.specs
        found = self._residuals(find_admm_state(state.opt_state), specs_lib.only_selected(specs, state.params))
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(found.rho)]
        columns = [[float(x) for x in jax.tree.leaves(tree)] for tree in found]
        for layer, primal, dual, distance, rho in zip(names, *columns, strict=True):
            if layer not in specs:  # a bias that goes with its filter
                continue
            values = {"distance": distance, "primal_residual": primal, "dual_residual": dual, "rho": rho}
            self._context.folder.log(_line(self._plan, "admm", number) | {"layer": layer} | values)


class _Validation:
    """A hook: scores the weights on validation after each epoch and keeps them if they are the best so far."""

    def __init__(self, plan: StagePlan, context: StageContext, kept: Kept, say: Callable[[str], None]):
        self._plan, self._context, self.kept, self._say = plan, context, kept, say

    def is_due(self, number: int) -> bool:
        return number % self._plan.steps_per_epoch == 0

    def __call__(self, number: int, state: TrainState) -> None:
        plan, context = self._plan, self._context
        key = stream_key(context.config.seed, "select")
        try:
            accuracy = context.select(state.params, state.batch_stats, context.validation, key)
        except ValueError as error:
            raise ValueError(f"Validation after step {number} of {plan.stage} failed: {error}") from error
        # In float32 as it is kept, or rounding would make some of equal scores better than others.
        score = np.float32(accuracy.score)
        better = bool(score > self.kept.score)
        if better:
            # Copies, because the next step donates the arrays of the state.
            params, batch_stats = jax.tree.map(jnp.copy, (state.params, state.batch_stats))
            place = first_device_sharding(context.mesh)
            self.kept = Kept(params, batch_stats, *(put(np.asarray(x), place) for x in (score, np.int32(number))))
        context.folder.log(
            _line(plan, "validation", number)
            | {"natural_accuracy": accuracy.natural, "robust_accuracy": accuracy.robust}
            | {"selected": better and plan.stage != "admm"}
        )
        epoch, num_epochs = number // plan.steps_per_epoch, plan.num_steps // plan.steps_per_epoch
        self._say(
            f"{plan.stage} epoch {epoch}/{num_epochs}: validation natural {accuracy.natural:.2%}, "
            f"robust {accuracy.robust:.2%}"
        )


class _Checkpoints:
    """A hook: saves when it is time, at the end, and before stopping on a signal."""

    def __init__(
        self,
        plan: StagePlan,
        context: StageContext,
        manager: ocp.CheckpointManager,
        seconds: float,
        validation: _Validation,
    ):
        self._plan, self._context, self._manager, self._validation = plan, context, manager, validation
        self.seconds = seconds  # until the last checkpoint
        self._signal_number = 0
        self._question = SteadyQuestion()
        self._saved = time.monotonic()

    def is_due(self, number: int) -> bool:
        late = time.monotonic() - self._saved >= self._context.output.checkpoint_every_seconds
        # Clocks differ, and a signal may reach one process alone: all of them save, or none.
        given = int(late), self._context.interrupt.requested or 0
        due, self._signal_number = self._question(*given, now=number == self._plan.num_steps)
        return bool(due or self._signal_number or number == self._plan.num_steps)

    def __call__(self, number: int, state: TrainState) -> None:
        now = time.monotonic()
        self.seconds += now - self._saved
        self._saved = now
        checkpoint.save(self._manager, number, StageState(state, self._validation.kept), {"seconds": self.seconds})
        if self._signal_number:
            where = f"in {self._plan.stage} after step {number} of {self._plan.num_steps}"
            raise Interrupted(self._signal_number, where)


def run_compact_stage(
    plan: StagePlan, context: StageContext, start: Weights, masks: chex.ArrayTree | None = None
) -> StageResult:
    """`run_stage` on the network without its removed filters: the same weights up to rounding, in less time.

    Weights and masks of the start decide what can be removed (see `compaction.plan`), so a resumed run finds the same
    compact network again. Checkpoints of the stage hold that network; the result has the shapes of `start`. If nothing
    can be removed, this is `run_stage`. The ADMM stage cannot use it: its sparsity sets are those of all filters.

    Differs from `run_stage`: (1) rounding, since sums have fewer zeros in them; (2) the numbers that `compaction.plan`
    lists, which the function does not depend on; the norm of the weights in the log is that of the compact network.

    Raises:
      ValueError, Interrupted: as `run_stage`.
    """
    removal = compaction_plan(context.model.wiring, start.params, masks)
    if not removal.features:
        return run_stage(plan, context, start, masks)
    config, model = context.config, context.model.replace(features=removal.features)
    select = make_evaluator(model, config.select_attack, context.mesh, batch_size=config.eval_batch_size)
    compact_context = dataclasses.replace(context, model=model, select=select)
    compact_start = Weights(*(shrink(removal, tree) for tree in start))
    compact_masks = None if masks is None else shrink(removal, masks)
    if all(np.all(keep) for keep in jax.tree.leaves(compact_masks)):  # all that was masked is removed
        compact_masks = None
    result = run_stage(plan, compact_context, compact_start, compact_masks)
    weights = Weights(*(expand(removal, small, full) for small, full in zip(result.weights, start, strict=True)))
    return result._replace(weights=jax.device_put(weights, first_device_sharding(context.mesh)))
