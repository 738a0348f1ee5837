"""The hooks of a stage: the log, the residuals of ADMM, validation after each epoch, checkpoints."""

import math
import time
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rap_jax._runtime.interrupt import Interrupted
from rap_jax._runtime.mesh import first_device_sharding, gather, put
from rap_jax._runtime.processes import PeriodicLargest
from rap_jax.config import RunConfig
from rap_jax.pruning import specs as specs_lib
from rap_jax.pruning.admm import AdmmState, Residuals, find_admm_state, residuals
from rap_jax.pruning.layers import path_name
from rap_jax.runs import checkpoint
from rap_jax.training.loop import MetricsHook
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.state import Kept, StageState, TrainState, stored, stream_key
from rap_jax.training.step import StepMetrics
from rap_jax.training.task import StageContext

ResidualsFn = Callable[[AdmmState, chex.ArrayTree], Residuals]


def make_residuals_fn(context: StageContext) -> ResidualsFn:
    """(state of ADMM, pruned weights) -> residuals; compiled once."""
    project_fn = lambda weights: specs_lib.project_tree(context.specs, gather(weights, context.mesh))
    return jax.jit(lambda admm_state, weights: residuals(admm_state, weights, project_fn))


def metrics_log(plan: StagePlan, context: StageContext) -> MetricsHook:
    """A hook that refuses NaN and logs every so many steps."""

    def hook(number: int, metrics: StepMetrics) -> None:
        if not all(math.isfinite(x) for x in (metrics.loss, metrics.gradient_norm, metrics.weight_norm)):
            folder = context.folder.checkpoints(plan.stage)
            is_kept = any(folder.glob("[0-9]*"))
            kept = f"The last good checkpoint is kept in {folder}." if is_kept else f"No checkpoint is in {folder} yet."
            raise ValueError(
                f"Loss is {metrics.loss}, gradient norm {metrics.gradient_norm} and weight norm {metrics.weight_norm} "
                f"at step {number} of {plan.stage}; expected finite numbers. {kept} Try a smaller learning "
                f"rate, or a smaller rho, in a new --out_dir."
            )
        if number % context.output.log_every_steps == 0 or number == plan.num_steps:
            context.folder.log(_line(plan, "train", number) | jax.tree.map(float, metrics)._asdict())

    return hook


def _line(plan: StagePlan, kind: str, number: int) -> dict[str, Any]:
    """The start of a line of metrics.jsonl."""
    return {"kind": kind, "stage": plan.stage, "step": number, "epoch": number / plan.steps_per_epoch}


class ResidualsLog:
    """A hook: logs distance, residuals and rho of every layer after a dual step and at the end of the ADMM stage."""

    def __init__(self, plan: StagePlan, context: StageContext, residuals_fn: ResidualsFn):
        self._plan, self._context, self._residuals = plan, context, residuals_fn

    def is_due(self, number: int) -> bool:
        at_end = number == self._plan.num_steps
        return self._plan.dual_interval > 0 and (self._plan.is_dual_step(number - 1) or at_end)

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


class Validation:
    """A hook: scores the weights on validation after each epoch and keeps them if they are the best so far.

    With `ema_decay` the weights are their mean, but for the ADMM stage, which has none.
    """

    def __init__(self, plan: StagePlan, context: StageContext, kept: Kept, say: Callable[[str], None]):
        self._plan, self._context, self.kept, self._say = plan, context, kept, say
        self._select = context.selector(context.model)

    def is_due(self, number: int) -> bool:
        return number % self._plan.steps_per_epoch == 0

    def __call__(self, number: int, state: TrainState) -> None:
        plan, context = self._plan, self._context
        key = stream_key(context.config.seed, "select")
        try:
            accuracy = self._select(*state.scored, context.validation, key)
        except ValueError as error:
            raise ValueError(f"Validation after step {number} of {plan.stage} failed: {error}") from error
        # In float32 as it is kept, or rounding would make some of equal scores better than others.
        score = np.float32(accuracy.score)
        better = bool(score > self.kept.score)
        if better:
            # Copies, because the next step donates the arrays of the state.
            params, batch_stats = jax.tree.map(jnp.copy, state.scored)
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
            f"robust {accuracy.robust:.2%} under {_judge(context.config)}"
        )


def _judge(config: RunConfig) -> str:
    return "APGD-T and Square" if config.selection == "strong" else f"PGD-{config.select_attack.num_steps}"


class Checkpoints:
    """A hook: saves when it is time, at the end, and before stopping on a signal."""

    def __init__(
        self,
        plan: StagePlan,
        context: StageContext,
        manager: ocp.CheckpointManager,
        seconds: float,
        validation: Validation,
        share: float = 1.0,
    ):
        """`seconds`: spent before; `share`: of the time from now on that counts as this run's."""
        self._plan, self._context, self._manager, self._validation = plan, context, manager, validation
        self.seconds, self._share = seconds, share  # until the last checkpoint
        self._signal_number = 0
        self._largest = PeriodicLargest()
        self._saved = time.monotonic()

    def is_due(self, number: int) -> bool:
        late = time.monotonic() - self._saved >= self._context.output.checkpoint_every_seconds
        # Clocks differ, and a signal may reach one process alone: all of them save, or none.
        given = int(late), self._context.interrupt.requested or 0
        due, self._signal_number = self._largest(*given, now=number == self._plan.num_steps)
        return bool(due or self._signal_number or number == self._plan.num_steps)

    def __call__(self, number: int, state: TrainState) -> None:
        now = time.monotonic()
        self.seconds += self._share * (now - self._saved)
        self._saved = now
        content = stored(StageState(state, self._validation.kept))
        checkpoint.save(self._manager, number, content, {"seconds": self.seconds})
        if self._signal_number:
            where = f"in {self._plan.stage} after step {number} of {self._plan.num_steps}"
            raise Interrupted(self._signal_number, where)
