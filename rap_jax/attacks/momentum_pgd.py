"""PGD with momentum, MI-FGSM: steps follow what the gradients of all steps so far have in common.

Reference: Dong et al., "Boosting Adversarial Attacks with Momentum", 2018, https://arxiv.org/abs/1710.06081, section 3
and algorithm 1. Its images fool other networks more often than those of PGD, so it is the attack to carry over from one
network to another.

Differs from the paper: (1) step size and radius are two arguments; the paper's step is epsilon / num_steps; (2) every
step ends inside [0, 1]; (3) the start may be random, and more than one.
"""

import jax
import jax.numpy as jnp
import optax

from rap_jax.attacks.pgd import LossFn, pgd


def momentum_pgd(
    key: jax.Array,
    loss_fn: LossFn,
    images: jax.Array,
    *,
    epsilon: jax.Array | float,
    step_size: jax.Array | float,
    num_steps: int,
    decay: float = 1.0,
    norm: str = "linf",
    num_restarts: int = 1,
    random_start: bool = False,
) -> jax.Array:
    """Raises `loss_fn` inside a norm ball around `images` and inside [0, 1], along an accumulated gradient.

    Meant to be called under `jax.jit`, where everything but the arrays is static.

    Args:
      key: typed PRNG key of the random start, or one for each example [N]; not read if `random_start` is False.
      loss_fn: maps images [N, ...] to per-example losses [N].
      images: clean inputs in [0, 1], [N, ...]; the centre of each ball.
      epsilon: radius in input units (8/255, not 8); may be traced.
      step_size: length of a step in the same norm and units; may be traced.
      num_steps: gradient steps.
      decay: share of the accumulated gradient that a step keeps, the paper's mu, 0 or more. With 0 this is `pgd`; with
        1 all gradients count alike.
      norm: `linf` or `l2`.
      num_restarts: independent starts; each example keeps its start of highest loss. More than one need a random start.
      random_start: begin at a uniform point of the ball instead of at the image.

    Returns:
      Adversarial images, shape and dtype of `images`. No gradient flows through them.

    Raises:
      ValueError: a negative decay, restarts that are all the same, or what `pgd` refuses.
    """
    if num_restarts > 1 and not random_start:
        raise ValueError(f"num_restarts is {num_restarts!r} without random_start; expected 1, or random_start=True.")
    return pgd(
        key,
        loss_fn,
        images,
        epsilon=epsilon,
        step_size=step_size,
        num_steps=num_steps,
        norm=norm,
        num_restarts=num_restarts,
        random_start=random_start,
        transform=momentum(decay),
    )


def momentum(decay: float) -> optax.GradientTransformation:
    """The sum of all gradients so far, each over its L1 norm, the older ones shrunk by `decay` at every step.

    For `pgd_restarts(..., transform=momentum(1.0))`, which returns what every restart found.

    Raises:
      ValueError: a negative decay.
    """
    if not decay >= 0:
        raise ValueError(f"decay is {decay!r}; expected 0 (no momentum) or more, such as the paper's 1.0.")
    return optax.chain(optax.stateless(_over_l1_norm), optax.trace(decay))


def _over_l1_norm(gradient: jax.Array, params: optax.Params | None) -> jax.Array:
    """Gradients [N, ...] of L1 norm 1, where they are not zero.

    The norm is the sum, as in the paper; the authors' code takes the mean, which the direction of a step does not see.
    """
    del params
    norm = jnp.sum(jnp.abs(gradient), range(1, gradient.ndim), keepdims=True)
    return gradient / jnp.where(norm > 0, norm, 1.0)
