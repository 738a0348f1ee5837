"""Free adversarial training: the pass that trains the weights also moves the perturbation of the images.

Every batch is trained on m times in a row. Each update takes one forward and one backward pass, at the images moved by
a perturbation, and the gradients of that pass with respect to the weights and to the images move both. The perturbation
goes on from update to update and, place by place, from batch to batch. An update costs what one of natural training
costs; so do E epochs, if an epoch is a number of updates (as it is here): they go through the data E / m times.

Reference: Shafahi et al., "Adversarial Training for Free!", 2019, https://arxiv.org/abs/1904.12843, algorithm 1.

Differs from the authors' code: (1) the gradient is that at the perturbed image; theirs passes the clipping to [0, 1]
and is zero where that clips, so a perturbation that points out of the box stays there as long as the batch does, which
matters where many pixels are 0 or 1. (2) With label smoothing both gradients are of the smoothed loss, since there is
one pass, while other attacks here see the labels as they are.
"""

import chex
import jax
import jax.numpy as jnp

from rap_jax.attacks import norm_of
from rap_jax.config import AttackConfig, TrainConfig


def first_perturbation(config: TrainConfig, shape: tuple[int, ...]) -> chex.ArrayTree:
    """What a stage begins with: zeros of the `shape` of a batch, [N, H, W, C]; () if its training is not free."""
    return jnp.zeros(shape, jnp.float32) if config.free_replays else ()


def perturb(images: jax.Array, perturbation: jax.Array) -> jax.Array:
    """The images [N, ...] moved by the perturbation, same shape, inside [0, 1]."""
    return jnp.clip(images + perturbation, 0.0, 1.0)


def move_perturbation(
    perturbation: jax.Array, gradient: jax.Array, attack: AttackConfig, scale: jax.Array | float = 1.0
) -> jax.Array:
    """One step uphill, then back into the ball.

    Args:
      perturbation: [N, ...].
      gradient: of the loss with respect to the perturbed images, same shape; its length does not matter.
      attack: norm, radius and step size.
      scale: share of radius and step size in force, in (0, 1].

    Returns:
      The perturbation for the next update, of norm scale * epsilon at most.
    """
    ball = norm_of(attack.norm)
    moved = perturbation + scale * attack.step_size * ball.steepest(gradient)
    return ball.project(moved, scale * attack.epsilon)
