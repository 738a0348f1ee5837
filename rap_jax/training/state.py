"""What training carries from step to step, and the random streams of a run.

Every key is folded from the run's seed, its purpose and the stage. Nothing random is carried from step to step, so a
resumed run draws the numbers of an uninterrupted one.
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax.config import STAGES, Stage
from rap_jax.models.model import Weights

Purpose = Literal["init", "order", "attack", "select", "report", "batch"]
_PURPOSES: tuple[Purpose, ...] = ("init", "order", "attack", "select", "report", "batch")


def stream_key(seed: int, purpose: Purpose, stage: Stage | None = None) -> jax.Array:
    """The typed key of one stream; streams of different purpose or stage are independent."""
    key = jax.random.fold_in(jax.random.key(seed), _PURPOSES.index(purpose))
    return jax.random.fold_in(key, 0 if stage is None else 1 + STAGES.index(stage))


class TrainState(NamedTuple):
    """State of one stage. The random key is not in it: step keys are folded from the run's seed and `step`.

    Attributes:
      step: updates done in this stage, int32.
      params: weights.
      batch_stats: BatchNorm statistics, `{}` for a network without.
      opt_state: state of the optimizer chain, with z and u in the ADMM stage and the masks in the retrain.
      perturbation: in free training what the images of a batch are moved by, float32 [N, H, W, C]; () in any other.
    """

    step: jax.Array
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    opt_state: optax.OptState
    perturbation: chex.ArrayTree = ()


class Kept(NamedTuple):
    """The best model on validation so far. Attributes: params, batch_stats; score, step: of the choice."""

    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    score: jax.Array
    step: jax.Array


class StageState(NamedTuple):
    """What a checkpoint holds: the state to go on from, and the model kept so far."""

    train: TrainState
    kept: Kept


def init_stage_state(
    start: Weights, tx: optax.GradientTransformationExtraArgs, perturbation: chex.ArrayTree = ()
) -> StageState:
    """Fresh state of a stage that begins at `start`; nothing is kept yet (score -1).

    All leaves are copies: a step donates its state, and that must not reach the caller's arrays.
    """
    first, kept = (jax.tree.map(jnp.copy, start) for _ in range(2))
    return StageState(
        TrainState(jnp.zeros((), jnp.int32), first.params, first.batch_stats, tx.init(start.params), perturbation),
        Kept(kept.params, kept.batch_stats, score=jnp.full((), -1.0, jnp.float32), step=jnp.zeros((), jnp.int32)),
    )
