"""Where an APGD attack is, how a step moves it, and what a checkpoint makes of it; see `apgd`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax.attacks.norms import Norm
from rap_jax.attacks.stepwise import where

# Shares of the steps: the first period between checkpoints, by how much each is shorter than the last, the shortest.
_FIRST_PERIOD, _SHORTER, _SHORTEST = 0.22, 0.03, 0.06
_MOMENTUM = 0.25


class ApgdState(NamedTuple):
    """Where each example is, leaves [N, ...].

    Attributes:
      keys, images, labels, targets: what it began with; targets are the labels without a target.
      iteration: steps done, int32.
      current, previous: the image now, and before the last step.
      gradient: of the loss at `current`.
      best, best_gradient, best_loss: the image of highest loss so far.
      last_loss: after the last step.
      rises: in how many steps since the last checkpoint the loss rose.
      step_size: for the next step.
      halved, checked_loss: whether the last checkpoint halved the step, and `best_loss` at it.
      adversarial, broken, sound: see `AttackState`; the last misclassified image.
    """

    keys: jax.Array
    images: jax.Array
    labels: jax.Array
    targets: jax.Array
    iteration: jax.Array
    current: jax.Array
    previous: jax.Array
    gradient: jax.Array
    best: jax.Array
    best_gradient: jax.Array
    best_loss: jax.Array
    last_loss: jax.Array
    rises: jax.Array
    step_size: jax.Array
    halved: jax.Array
    checked_loss: jax.Array
    adversarial: jax.Array
    broken: jax.Array
    sound: jax.Array


def move(ball: Norm, epsilon: float, state: ApgdState) -> jax.Array:
    """The next image: a step along the gradient, and a share of it with a share of the last change; in ball and box."""
    into = lambda x: jnp.clip(state.images + ball.project(x - state.images, epsilon), 0, 1)
    size = state.step_size.reshape(-1, *[1] * (state.images.ndim - 1))
    stepped = into(state.current + size * ball.steepest(state.gradient))
    share = where(state.iteration == 0, jnp.ones_like(size), jnp.full_like(size, 1 - _MOMENTUM))
    moved = share * (stepped - state.current) + (1 - share) * (state.current - state.previous)
    return into(state.current + moved)


def check(state: ApgdState, *, num_steps: int, rho: float) -> ApgdState:
    """At a checkpoint: halves the step and goes back to the best image where the steps since the last did not do well.

    Args:
      state: after a step, `iteration` not yet counted up.
      num_steps: of the attack.
      rho: see `Apgd`.
    """
    periods = jnp.asarray(checkpoint_periods(num_steps))[state.iteration]
    too_few = state.rises.astype(jnp.float32) <= rho * periods.astype(jnp.float32)
    stuck = ~state.halved & (state.checked_loss >= state.best_loss)
    at_check = periods > 0
    halve = at_check & (too_few | stuck)
    return state._replace(
        # The image before this step stays the previous one, so the next momentum points away from what is given up.
        current=where(halve, state.best, state.current),
        gradient=where(halve, state.best_gradient, state.gradient),
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        halved=jnp.where(at_check, halve, state.halved),
        checked_loss=jnp.where(at_check, state.best_loss, state.checked_loss),
        rises=jnp.where(at_check, 0, state.rises),
    )


def checkpoint_periods(num_steps: int) -> np.ndarray:
    """For each step the length of the period that ends after it, or 0 where none does; int32 [num_steps]."""
    lengths = (max(int(share * num_steps), 1) for share in (_FIRST_PERIOD, _SHORTER, _SHORTEST))
    period, shorter, shortest = lengths
    periods, step = np.zeros(max(num_steps, 1), np.int32), period
    while step <= num_steps:
        periods[step - 1] = period
        period = max(period - shorter, shortest)
        step += period
    return periods
