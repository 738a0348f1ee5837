"""One stage of a run: its steps, validation after each epoch, and checkpoints to go on from.

Whatever happens to the process, the same call goes on where the last checkpoint was and ends with the same weights:
batches and attacks follow from the seed and the step alone."""

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.interrupt import Interrupt, Interrupted
from rap_jax._runtime.mesh import DeviceSplit, gather, home, put, state_home
from rap_jax._runtime.processes import largest
from rap_jax._runtime.progress import Progress
from rap_jax.config import ComputeConfig, OutputConfig, RunConfig, Stage
from rap_jax.evaluation.accuracy import Accuracy, Evaluator
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.pruning import specs as specs_lib
from rap_jax.pruning.admm import find_admm_state, residuals
from rap_jax.pruning.layers import path_name
from rap_jax.pruning.specs import Specs
from rap_jax.runs import checkpoint
from rap_jax.runs.folder import RunFolder
from rap_jax.training.input import Given, Order, TrainInput
from rap_jax.training.optimizer import Length, stage_learning_rate, stage_length, stage_optimizer
from rap_jax.training.sharded_step import StepKeys, StepMetrics, TrainStep, make_train_step
from rap_jax.training.state import Kept, StageState, init_stage_state, stream_key
from rap_jax.training.step import first_perturbation


class Setup(NamedTuple):
    """What all stages of a run share."""

    config: RunConfig
    output: OutputConfig
    compute: ComputeConfig
    model: Model
    mesh: Mesh
    train: TrainInput
    validation: DeviceSplit
    select: Evaluator
    specs: Specs
    folder: RunFolder
    interrupt: Interrupt


class Outcome(NamedTuple):
    """Attributes: weights: what the stage hands over; step: when they were reached; seconds: spent, over all calls."""

    weights: Weights
    step: int
    seconds: float


def run_stage(stage: Stage, setup: Setup, start: Weights, masks: chex.ArrayTree | None = None) -> Outcome:
    """Trains one stage from `start`, or from its last checkpoint, to its end.

    Pretrain and retrain hand over the model of best validation score, ADMM its last one.

    Args:
      masks: False where a weight has to stay zero, bool tree like the params; None if none has.

    Raises:
      ValueError: the loss is NaN or infinite (the last good checkpoint stays), or every checkpoint is damaged.
      Interrupted: a signal came; the state is saved.
    """
    length = stage_length(setup.config, stage, len(setup.train.labels))
    run = _Run(stage, setup, start, masks, length)
    run.restore()
    if run.step < length.stage:
        run.train()
    run.manager.close()
    train, kept = run.state
    if stage == "admm":
        return Outcome(run.whole(Weights(train.params, train.batch_stats)), run.step, run.seconds)
    return Outcome(run.whole(Weights(kept.params, kept.batch_stats)), int(kept.step), run.seconds)


class _Run:
    """The moving parts of a stage under way: its state, the clock, and where it writes."""

    def __init__(self, stage: Stage, setup: Setup, start: Weights, masks: chex.ArrayTree | None, length: Length):
        self.stage, self.setup, self.length = stage, setup, length
        learning_rate = stage_learning_rate(setup.config, stage, length)
        make_tx = stage_optimizer(stage, setup.config, length, start.params, setup.specs, setup.mesh)
        self.train_step: TrainStep = make_train_step(
            setup.model, make_tx(masks), setup.config.train, learning_rate, setup.mesh, ramp_steps=length.ramp
        )
        seed = setup.config.seed
        self.keys = StepKeys(stream_key(seed, "attack", stage), stream_key(seed, "batch", stage))
        batch_shape = (setup.config.batch_size, *setup.model.input_shape)
        # Masks are an argument: closed over they would be constants of the program, as large as the network.
        init = lambda weights, masks: init_stage_state(
            weights, make_tx(masks), first_perturbation(setup.config.train, batch_shape)
        )
        self.places = state_home(jax.eval_shape(init, start, masks), setup.mesh)
        self.state: StageState = jax.jit(init, out_shardings=self.places)(start, masks)
        project_fn = lambda weights: specs_lib.project_tree(setup.specs, gather(weights, setup.mesh))
        self.residuals = jax.jit(lambda admm_state, weights: residuals(admm_state, weights, project_fn))
        self.step, self.seconds = 0, 0.0
        self.manager = checkpoint.open_checkpoints(setup.folder.checkpoints(stage))
        self._clock = self._saved = time.monotonic()

    def whole(self, weights: Weights) -> Weights:
        """As they are handed over: at `home`, in one piece."""
        return jax.device_put(weights, home(self.setup.mesh))

    def restore(self) -> None:
        """Goes to the last good checkpoint, if there is one."""
        abstract = checkpoint.abstract_like(self.state, self.places)
        restored = checkpoint.restore_latest(self.manager, abstract)
        if restored is not None:
            self.state, self.step = restored.state, restored.step
            self.seconds = float(restored.meta["seconds"])
        if self.step < self.length.stage:
            self.setup.folder.forget_metrics_after(self.stage, self.step if self.step else -1)

    def train(self) -> None:
        """Runs the steps that are left. The checkpoint of the last step is always written."""
        label = f"{self.setup.config.name} {self.stage}"
        if self.stage == "admm" and self.step == 0:
            self._log_residuals()
        with Progress(label, self.length.stage, start=self.step) as progress:
            if self.step:
                progress.line(f"{self.stage}: going on from the checkpoint of step {self.step}")
            for given in self._batches():
                metrics = self._advance(given)
                self._log_step(metrics)
                if self.step % self.length.epoch == 0:
                    progress.line(self._validate())
                progress.update(self.step, f"loss {metrics.loss:.3f}  accuracy {metrics.accuracy:.1%}")
                self._save_if_due()

    def _batches(self) -> Iterator[Given]:
        """What each step from this one on is given."""
        config, train = self.setup.config, self.setup.train
        key = stream_key(config.seed, "order", self.stage)
        order = Order(key, len(train.labels), config.batch_size, config.train.updates_per_batch)
        return train.batches(order, range(self.step, self.length.stage))

    def _advance(self, given: Given) -> StepMetrics:
        """One step; waits for it, since two programs in flight on CPU devices can block each other for ever."""
        dual_step = self._is_dual_step(self.step)
        train, metrics = self.train_step(self.state.train, *given, self.keys, dual_step)
        self.state = self.state._replace(train=train)
        self.step += 1
        metrics = jax.device_get(metrics)
        if not all(math.isfinite(x) for x in (metrics.loss, metrics.gradient_norm, metrics.weight_norm)):
            raise ValueError(
                f"Loss is {metrics.loss}, gradient norm {metrics.gradient_norm} and weight norm {metrics.weight_norm} "
                f"at step {self.step} of {self.stage}; expected finite numbers. The last good checkpoint is kept in "
                f"{self.setup.folder.checkpoints(self.stage)}. Try a smaller learning rate, or a smaller rho, in a "
                f"new --out_dir."
            )
        return metrics

    def _is_dual_step(self, step: int) -> bool:
        return self.length.dual > 0 and step > 0 and step % self.length.dual == 0

    def _log_step(self, metrics: StepMetrics) -> None:
        if self.step % self.setup.output.log_every_steps == 0 or self.step == self.length.stage:
            self.setup.folder.log(self._record("train") | jax.tree.map(float, metrics)._asdict())
        # The step before this one was the dual step if its number was a multiple of the interval.
        if self.stage == "admm" and (self._is_dual_step(self.step - 1) or self.step == self.length.stage):
            self._log_residuals()

    def _record(self, kind: str) -> dict[str, Any]:
        return {"kind": kind, "stage": self.stage, "step": self.step, "epoch": self.step / self.length.epoch}

    def _log_residuals(self) -> None:
        specs, train = self.setup.specs, self.state.train
        found = self.residuals(find_admm_state(train.opt_state), specs_lib.only_selected(specs, train.params))
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(found.rho)]
        columns = [[float(x) for x in jax.tree.leaves(tree)] for tree in found]
        for layer, primal, dual, distance, rho in zip(names, *columns, strict=True):
            if layer not in specs:  # a bias that goes with its filter
                continue
            values = {"distance": distance, "primal_residual": primal, "dual_residual": dual, "rho": rho}
            self.setup.folder.log(self._record("admm") | {"layer": layer} | values)

    def _validate(self) -> str:
        """Scores the weights of this step on validation and keeps them if they are the best so far."""
        params, batch_stats = self.state.train.params, self.state.train.batch_stats
        key = stream_key(self.setup.config.seed, "select")
        try:
            accuracy = self.setup.select(params, batch_stats, self.setup.validation, key)
        except ValueError as error:
            raise ValueError(f"Validation after step {self.step} of {self.stage} failed: {error}") from error
        # In float32 as it is kept, or rounding would make some of equal scores better than others.
        better = bool(np.float32(accuracy.score) > self.state.kept.score)
        if better:
            self._keep(accuracy)
        self.setup.folder.log(
            self._record("validation")
            | {"natural_accuracy": accuracy.natural, "robust_accuracy": accuracy.robust}
            | {"selected": better and self.stage != "admm"}
        )
        epoch = self.step // self.length.epoch
        return (
            f"{self.stage} epoch {epoch}/{self.length.stage // self.length.epoch}: validation natural "
            f"{accuracy.natural:.2%}, robust {accuracy.robust:.2%}"
        )

    def _keep(self, accuracy: Accuracy) -> None:
        params, batch_stats = self.state.train.params, self.state.train.batch_stats
        # Copies, because the next step donates the arrays of the state.
        kept = Weights(*jax.tree.map(jnp.copy, (params, batch_stats)))
        chosen = (np.float32(accuracy.score), np.int32(self.step))
        score, step = (put(np.asarray(number), home(self.setup.mesh)) for number in chosen)
        self.state = self.state._replace(kept=Kept(kept.params, kept.batch_stats, score, step))

    def _save_if_due(self) -> None:
        """Saves when it is time, at the end, and before stopping on a signal."""
        now = time.monotonic()
        late = now - self._saved >= self.setup.output.checkpoint_every_seconds
        # Clocks differ, and a signal may reach one process alone: all of them save, or none.
        due, signal_number = largest(int(late), self.setup.interrupt.requested or 0)
        if due or signal_number or self.step == self.length.stage:
            self.seconds += now - self._clock
            self._clock = self._saved = now
            checkpoint.save(self.manager, self.step, self.state, {"seconds": self.seconds})
        if signal_number:
            raise Interrupted(signal_number, f"in {self.stage} after step {self.step} of {self.length.stage}")
