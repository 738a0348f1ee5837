"""The learning rate and the optimizer chain of a stage, from the config of its run."""

import functools
from collections.abc import Callable

import chex
import optax
from jax.sharding import Mesh

from rap_jax.config import RunConfig, Stage
from rap_jax.length import Length
from rap_jax.optimizer import learning_rate_schedule, make_optimizer, make_penalty
from rap_jax.shards import gather
from rap_jax.specs import Specs


def stage_learning_rate(config: RunConfig, stage: Stage, length: Length) -> optax.Schedule:
    """The learning rate over the steps of a stage."""
    reset_every = length.dual if config.prune.reset_learning_rate else 0
    settings = config.stage(stage).optimizer
    return learning_rate_schedule(
        settings, steps_per_epoch=length.epoch, num_steps=length.stage, reset_every=reset_every
    )


def stage_optimizer(
    stage: Stage, config: RunConfig, length: Length, params: chex.ArrayTree, specs: Specs, mesh: Mesh
) -> Callable[[chex.ArrayTree | None], optax.GradientTransformationExtraArgs]:
    """Masks, or None -> the optimizer chain of a stage. Of the params the names and shapes count."""
    settings, learning_rate = config.stage(stage).optimizer, stage_learning_rate(config, stage, length)
    whole = functools.partial(gather, mesh=mesh)
    penalty = make_penalty(params, config.prune, specs, whole) if stage == "admm" else None
    return lambda masks: make_optimizer(settings, learning_rate, penalty=penalty, masks=masks)
