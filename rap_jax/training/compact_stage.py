"""A stage on the network without its removed filters: the same weights up to rounding, in less time.

The weights and masks of the stage's start say what can be removed (see `compaction.plan`), so a run that goes on finds
the same small network again. Checkpoints of the stage hold that network; what the stage hands over is the whole one.

Differs from the stage on the whole network: (1) rounding, since sums have fewer zeros in them; (2) the numbers that
`compaction.plan` lists, which the function does not depend on; the norm of the weights in the log is that of the small
network."""

import chex
import jax
import numpy as np

from rap_jax._runtime.mesh import home
from rap_jax.compaction import CompactionPlan, compaction_plan, expand, shrink
from rap_jax.config import Stage
from rap_jax.evaluation.accuracy import make_evaluator
from rap_jax.models import create_model
from rap_jax.models.model import Weights
from rap_jax.training.stage import Outcome, Setup, run_stage


def run_small_stage(stage: Stage, setup: Setup, start: Weights, masks: chex.ArrayTree | None = None) -> Outcome:
    """`run_stage` on what is left of the network that `start` is; on the network itself where nothing can be removed.

    Not for the ADMM stage, whose sparsity sets are those of the whole network.

    Raises:
      ValueError, Interrupted: as `run_stage`.
    """
    plan = compaction_plan(setup.model.wiring, start.params, masks)
    if not plan.features:
        return run_stage(stage, setup, start, masks)
    small_start = Weights(*(shrink(plan, tree) for tree in start))
    outcome = run_stage(stage, _small_setup(setup, plan), small_start, _small_masks(plan, masks))
    whole = (expand(plan, small, full) for small, full in zip(outcome.weights, start, strict=True))
    return outcome._replace(weights=jax.device_put(Weights(*whole), home(setup.mesh)))


def _small_setup(setup: Setup, plan: CompactionPlan) -> Setup:
    model = create_model(
        setup.config.model,
        input_shape=setup.model.input_shape,
        num_classes=setup.model.num_classes,
        implementation=setup.compute.implementation,
        features=plan.features,
    )
    select = make_evaluator(model, setup.config.select_attack, setup.mesh, batch_size=setup.config.eval_batch_size)
    return setup._replace(model=model, select=select)


def _small_masks(plan: CompactionPlan, masks: chex.ArrayTree | None) -> chex.ArrayTree | None:
    """None where all that was masked is removed."""
    small = shrink(plan, masks) if masks is not None else None
    return small if any(not np.all(keep) for keep in jax.tree.leaves(small)) else None
