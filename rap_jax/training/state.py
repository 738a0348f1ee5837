"""The state that training carries from step to step, and the random streams of a run.

Every key is folded from the run's seed, its purpose and the stage. Nothing random is carried from step to step, so a
resumed run draws the numbers of an uninterrupted one.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax.config import STAGES, RunConfig, Stage, TrainConfig
from rap_jax.models.model import Weights
from rap_jax.pruning.masks import apply_state_masks

Purpose = Literal["init", "order", "attack", "select", "report", "batch", "prune"]
_PURPOSES: tuple[Purpose, ...] = ("init", "order", "attack", "select", "report", "batch", "prune")


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
    average: chex.ArrayTree = ()  # exponential mean of weights and BatchNorm statistics, `Weights`; () without
    teacher: chex.ArrayTree = ()  # of a distillation, `Weights`: the same in every step; () without

    @property
    def scored(self) -> Weights:
        """The weights that validation scores: their mean, where there is one."""
        return self.average if isinstance(self.average, Weights) else Weights(self.params, self.batch_stats)


class Kept(NamedTuple):
    """The best model on validation so far."""

    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    score: jax.Array  # on validation, float32; -1 before the first validation
    step: jax.Array  # updates done when it was scored, int32


class StageState(NamedTuple):
    """The state of a stage; `stored` is the content of its checkpoint."""

    train: TrainState
    kept: Kept


class _FirstTrainState(NamedTuple):
    """The fields of `TrainState` that it has had from the first: a checkpoint names those that are empty, too."""

    step: jax.Array
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    opt_state: optax.OptState
    perturbation: chex.ArrayTree


def stored(state: StageState) -> StageState:
    """The state without fields that came later, if they are empty: so earlier versions wrote it, and go on with it."""
    first, later = state.train[: len(_FirstTrainState._fields)], state.train[len(_FirstTrainState._fields) :]
    train: Any = state.train if any(later) else _FirstTrainState(*first)
    return state._replace(train=train)


def from_stored(state: StageState) -> StageState:
    """The whole state again; what it lacks is empty."""
    return state._replace(train=TrainState(*state.train))


def first_perturbation(config: TrainConfig, shape: tuple[int, ...]) -> chex.ArrayTree:
    """The perturbation at the start of a stage: zeros of the `shape` of a batch; () if its training is not free."""
    return jnp.zeros(shape, jnp.float32) if config.free_replays else ()


def has_average(config: TrainConfig, stage: Stage) -> bool:
    """Whether a stage keeps the mean of its weights.

    The ADMM stage does not: it ends with its last weights, which z and u belong to. A mean lags behind them on their
    way to the sparsity sets, and would lose more by the cut.
    """
    return config.ema_decay > 0 and stage != "admm"


def has_teacher(config: TrainConfig, stage: Stage) -> bool:
    """Whether a stage learns from the dense network: each that comes after its training."""
    return config.distillation != "none" and stage != "pretrain"


def move_average(average: chex.ArrayTree, weights: Weights, decay: float, step: jax.Array) -> chex.ArrayTree:
    """The exponential mean d average + (1 - d) weights, d = min(decay, (1 + t) / (10 + t)), after t updates.

    The first weights of a stage, with which its mean begins, are soon forgotten: d is 2/11 after one update and 0.99
    after 890. A weight that is zero in both stays exactly zero.

    Args:
      average: the mean before, `Weights`; or (), which is returned.
      weights: after the update.
      decay: the largest d, in [0, 1).
      step: t, updates done in this stage, 1 or more, int32.

    References: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992,
    https://doi.org/10.1137/0330046; the d of few updates is that of TensorFlow's `ExponentialMovingAverage`.
    """
    if not isinstance(average, Weights):
        return average
    updates = step.astype(jnp.float32)
    return optax.incremental_update(weights, average, 1 - jnp.minimum(decay, (1 + updates) / (10 + updates)))


def init_stage_state(
    start: Weights,
    tx: optax.GradientTransformationExtraArgs,
    perturbation: chex.ArrayTree = (),
    *,
    with_average: bool = False,
    teacher: chex.ArrayTree = (),
) -> StageState:
    """Fresh state of a stage that begins at `start`, and so does its mean.

    The weights of the teacher are part of the state. So they lie where the state lies, each of several seeds has its
    own, and no program holds them as constants. Weights begin under the masks of the optimizer chain.

    All leaves are copies: a step donates its state, and that must not reach the caller's arrays.
    """
    copy = lambda: jax.tree.map(jnp.copy, start)
    first, kept, average = copy(), copy(), copy() if with_average else ()
    step, opt_state = jnp.zeros((), jnp.int32), tx.init(start.params)
    return StageState(
        TrainState(
            step,
            apply_state_masks(opt_state, first.params),
            first.batch_stats,
            opt_state,
            perturbation,
            average,
            jax.tree.map(jnp.copy, teacher),
        ),
        Kept(kept.params, kept.batch_stats, score=jnp.full((), -1.0, jnp.float32), step=jnp.zeros((), jnp.int32)),
    )


InitState = Callable[[Weights, chex.ArrayTree | None, chex.ArrayTree], StageState]


def stage_init(
    make_tx: Callable[[chex.ArrayTree | None], optax.GradientTransformationExtraArgs],
    config: RunConfig,
    input_shape: tuple[int, int, int],
    stage: Stage,
) -> InitState:
    """(start, masks, teacher) -> the fresh state of a stage, to be jitted.

    Masks and teacher are arguments: closed over they would be constants of the program, as large as the network.

    Args:
      make_tx: from `stage_optimizer`.
      input_shape: of one image, in free training.
      stage: its name.
    """
    perturbation = lambda: first_perturbation(config.train, (config.batch_size, *input_shape))
    with_average = has_average(config.train, stage)
    return lambda start, masks, teacher: init_stage_state(
        start, make_tx(masks), perturbation(), with_average=with_average, teacher=teacher
    )
