"""The state that training carries from step to step, and the random streams of a run.

Every key is folded from the run's seed, its purpose and the stage. Nothing random is carried from step to step, so a
resumed run draws the numbers of an uninterrupted one.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax.config import STAGES, RunConfig, Stage, TrainConfig
from rap_jax.models.model import Weights

Purpose = Literal["init", "order", "attack", "select", "report", "batch"]
_PURPOSES: tuple[Purpose, ...] = ("init", "order", "attack", "select", "report", "batch")


def stream_key(seed: int, purpose: Purpose, stage: Stage | None = None) -> jax.Array:
    """The typed key of one stream; streams of different purpose or stage are independent."""
    key = jax.random.fold_in(jax.random.key(seed), _PURPOSES.index(purpose))
    return jax.random.fold_in(key, 0 if stage is None else 1 + STAGES.index(stage))


class StepKeys(NamedTuple):
    """Keys of a stage, from which each step folds its own."""

    attack: jax.Array
    batch: jax.Array  # of augmentation and mixup


def step_keys(seed: int, stage: Stage) -> StepKeys:
    """The keys of a stage of a run."""
    return StepKeys(stream_key(seed, "attack", stage), stream_key(seed, "batch", stage))


class TrainState(NamedTuple):
    """State of one stage. The random key is not in it: step keys are folded from the run's seed and `step`."""

    step: jax.Array  # updates done in this stage, int32
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree  # statistics of BatchNorm, {} without
    opt_state: optax.OptState  # of the optimizer chain: with z and u in the ADMM stage, with the masks in the retrain
    perturbation: chex.ArrayTree = ()  # of the images of a batch in free training, float32 [N, H, W, C]; else ()


class Kept(NamedTuple):
    """The best model on validation so far."""

    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    score: jax.Array  # on validation, float32; -1 before the first validation
    step: jax.Array  # updates done when it was scored, int32


class StageState(NamedTuple):
    """The content of a checkpoint."""

    train: TrainState
    kept: Kept


def first_perturbation(config: TrainConfig, shape: tuple[int, ...]) -> chex.ArrayTree:
    """The perturbation at the start of a stage: zeros of the `shape` of a batch; () if its training is not free."""
    return jnp.zeros(shape, jnp.float32) if config.free_replays else ()


def init_stage_state(
    start: Weights, tx: optax.GradientTransformationExtraArgs, perturbation: chex.ArrayTree = ()
) -> StageState:
    """Fresh state of a stage that begins at `start`.

    All leaves are copies: a step donates its state, and that must not reach the caller's arrays.
    """
    first, kept = (jax.tree.map(jnp.copy, start) for _ in range(2))
    return StageState(
        TrainState(jnp.zeros((), jnp.int32), first.params, first.batch_stats, tx.init(start.params), perturbation),
        Kept(kept.params, kept.batch_stats, score=jnp.full((), -1.0, jnp.float32), step=jnp.zeros((), jnp.int32)),
    )


InitState = Callable[[Weights, chex.ArrayTree | None], StageState]


def stage_init(
    make_tx: Callable[[chex.ArrayTree | None], optax.GradientTransformationExtraArgs],
    config: RunConfig,
    input_shape: tuple[int, int, int],
) -> InitState:
    """(start, masks) -> the fresh state of a stage, to be jitted.

    The masks are an argument: closed over they would be constants of the program, as large as the network.

    Args:
      make_tx: from `stage_optimizer`.
      input_shape: of one image, in free training.
    """
    perturbation = lambda: first_perturbation(config.train, (config.batch_size, *input_shape))
    return lambda start, masks: init_stage_state(start, make_tx(masks), perturbation())
