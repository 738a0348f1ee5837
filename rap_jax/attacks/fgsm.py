"""The fast gradient sign method: one step to the border of the ball.

Reference: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015, https://arxiv.org/abs/1412.6572,
section 4. It finds the worst image of a loss that is linear inside the ball and is weak against any other: a network
that withstands it alone is not robust. The one step from a random start that cheap training takes (Wong et al., 2020)
is `pgd(..., num_steps=1, step_size=1.25 * epsilon)`.
"""

import jax

from rap_jax.attacks.pgd import LossFn, pgd


def fgsm(loss_fn: LossFn, images: jax.Array, *, epsilon: jax.Array | float, norm: str = "linf") -> jax.Array:
    """Moves every image by `epsilon` along the direction in which its loss rises most, then into [0, 1].

    Meant to be called under `jax.jit`, where everything but the arrays is static.

    Args:
      loss_fn: maps images [N, ...] to per-example losses [N].
      images: clean inputs in [0, 1], [N, ...].
      epsilon: length of the step in input units (8/255, not 8); may be traced.
      norm: `linf`, a step along the sign of the gradient, or `l2`, a step along the gradient.

    Returns:
      Adversarial images, shape and dtype of `images`. No gradient flows through them.

    Raises:
      ValueError: unknown norm, or images that are not floating point.
    """
    unread = jax.random.key(0)  # nothing is drawn: the start is the image itself
    return pgd(unread, loss_fn, images, epsilon=epsilon, step_size=epsilon, num_steps=1, norm=norm, random_start=False)
