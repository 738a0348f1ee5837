"""One stage of a run: its steps, validation after each epoch, and checkpoints to go on from.

    plan = plan_stage(config, "pretrain", num_examples)
    result = run_alone(run_stage(plan, context, start))

Whatever happens to the process, the same call goes on where the last checkpoint was and ends with the same weights:
batches and attacks follow from the seed and the step alone.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

from rap_jax._runtime.mesh import first_device_sharding, has_several_cpu_devices, state_shardings
from rap_jax._runtime.progress import Progress
from rap_jax.compaction import compaction_plan, expand, shrink
from rap_jax.data.batches import BatchInputs
from rap_jax.models.model import Features, Weights
from rap_jax.runs import checkpoint
from rap_jax.training.hooks import Checkpoints, ResidualsLog, Validation, make_residuals_fn, metrics_log
from rap_jax.training.input import Order
from rap_jax.training.loop import Hooks, run_steps, train_steps
from rap_jax.training.optimizer import StagePlan, stage_optimizer
from rap_jax.training.sharded_step import TrainStep, make_train_step
from rap_jax.training.state import InitState, StageState, from_stored, stage_init, step_keys, stored, stream_key
from rap_jax.training.step import StepMetrics
from rap_jax.training.task import Reached, StageContext, StageResult, StageTask, T, Training


def run_alone(run: Training[T]) -> T:
    """What a run returns; its stages are trained as it asks for it.

    Raises:
      ValueError, Interrupted: as `run_stage`.
    """
    with contextlib.closing(run):
        try:
            task = next(run)
            while True:
                task = run.send(train_task(task))
        except StopIteration as end:
            found: T = end.value
            return found


def run_stage(
    plan: StagePlan, context: StageContext, start: Weights, masks: chex.ArrayTree | None = None
) -> Training[StageResult]:
    """Trains one stage from `start`, or from its last checkpoint, to its end.

    Pretrain and retrain return the model of best validation score, ADMM its last one. With `ema_decay` the models of
    pretrain and retrain are means of weights, each stage with a mean of its own; see `rap_jax.training.state`.

    Args:
      masks: False where a weight has to stay zero, bool tree like the params; None if none has.

    Raises:
      ValueError: the loss is NaN or infinite (the last good checkpoint stays), or every checkpoint is damaged.
      Interrupted: a signal came; the state is saved.
    """
    parts = stage_parts(plan, context, start, masks)
    manager = checkpoint.open_checkpoints(context.folder.checkpoints(plan.stage))
    reached = restore_stage(manager, checkpoint.abstract_like(parts.shapes, parts.shardings))
    if reached is None or reached.step < plan.num_steps:
        context.folder.forget_metrics_after(plan.stage, reached.step if reached and reached.step else -1)
        reached = yield StageTask(plan, context, start, masks, reached, manager)
    manager.close()
    train, kept = reached.state
    last, best = Weights(train.params, train.batch_stats), Weights(kept.params, kept.batch_stats)
    weights, step = (last, reached.step) if plan.stage == "admm" else (best, int(kept.step))
    return StageResult(jax.device_put(weights, first_device_sharding(context.mesh)), step, reached.seconds)


class StageParts(NamedTuple):
    """The state of a stage and its optimizer chain."""

    make_tx: Callable[[chex.ArrayTree | None], optax.GradientTransformationExtraArgs]  # from the masks
    init: InitState
    shapes: StageState
    shardings: Any


def stage_parts(plan: StagePlan, context: StageContext, start: Weights, masks: chex.ArrayTree | None) -> StageParts:
    """Of start and masks only names and shapes are used."""
    make_tx = stage_optimizer(plan, context.config, start.params, context.specs, context.mesh)
    init = stage_init(make_tx, context.config, context.model.input_shape, plan.stage)
    shapes = jax.eval_shape(init, start, masks, context.teacher_weights)
    return StageParts(make_tx, init, shapes, state_shardings(shapes, context.mesh))


def restore_stage(manager: ocp.CheckpointManager, template: Any) -> Reached | None:
    """The last good checkpoint, if there is one."""
    restored = checkpoint.restore_latest(manager, stored(template))
    if restored is None:
        return None
    return Reached(restored.step, from_stored(restored.state), float(restored.meta["seconds"]))


def train_task(task: StageTask) -> Reached:
    """Trains what is left of a stage."""
    plan, context, start, masks, reached, manager = task
    parts = stage_parts(plan, context, start, masks)
    if reached is None:
        init = jax.jit(parts.init, out_shardings=parts.shardings)
        reached = Reached(0, init(start, masks, context.teacher_weights), 0.0)
    tx = parts.make_tx(masks)
    settings = context.config.train
    train_step = make_train_step(context.model, tx, settings, plan, context.mesh, teacher=context.teacher_model)
    return train_stage(plan, context, train_step, reached, manager)


def train_stage(
    plan: StagePlan, context: StageContext, train_step: TrainStep, reached: Reached, manager: ocp.CheckpointManager
) -> Reached:
    """Takes the steps that are left, 1 or more. The checkpoint of the last step is always written."""
    keys, inputs = step_keys(context.config.seed, plan.stage), stage_inputs(plan, context, reached.step)
    label = f"{context.config.name} {plan.stage}"
    with Progress(label, plan.num_steps, start=reached.step) as progress:
        log_residuals = ResidualsLog(plan, context, make_residuals_fn(context))
        if reached.step:
            progress.line(f"{plan.stage}: going on from the checkpoint of step {reached.step}")
        elif plan.dual_interval:
            log_residuals(0, reached.state.train)
        validation = Validation(plan, context, reached.state.kept, progress.line)
        checkpoints = Checkpoints(plan, context, manager, reached.seconds, validation)

        def show(number: int, metrics: StepMetrics) -> None:
            progress.update(number, f"loss {metrics.loss:.3f}  accuracy {metrics.accuracy:.1%}")

        hooks = Hooks(
            on_metrics=(metrics_log(plan, context), show),
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


def run_compact_stage(
    plan: StagePlan, context: StageContext, start: Weights, masks: chex.ArrayTree | None = None
) -> Training[StageResult]:
    """`run_stage` on the network without its removed filters: the same weights up to rounding, in less time.

    Weights and masks of the start decide what can be removed (see `compaction.plan`), so a resumed run finds the same
    compact network again. Checkpoints of the stage hold that network; the result has the shapes of `start`. If nothing
    can be removed, this is `run_stage`. A teacher stays whole. The ADMM stage cannot use it: its sparsity sets are
    those of all filters.

    Differs from `run_stage`: (1) rounding, since sums have fewer zeros in them; (2) the numbers that `compaction.plan`
    lists, which the function does not depend on; the norm of the weights in the log is that of the compact network.

    Raises:
      ValueError, Interrupted: as `run_stage`.
    """
    removal = compaction_plan(context.model.wiring, start.params, masks)
    if not removal.features:
        return (yield from run_stage(plan, context, start, masks))
    compact_context = dataclasses.replace(context, model=context.remake(features=Features(removal.features)))
    compact_start = Weights(*(shrink(removal, tree) for tree in start))
    compact_masks = None if masks is None else shrink(removal, masks)
    if all(np.all(keep) for keep in jax.tree.leaves(compact_masks)):  # all that was masked is removed
        compact_masks = None
    result = yield from run_stage(plan, compact_context, compact_start, compact_masks)
    weights = Weights(*(expand(removal, small, full) for small, full in zip(result.weights, start, strict=True)))
    return result._replace(weights=jax.device_put(weights, first_device_sharding(context.mesh)))
