"""Projected gradient descent on the images, with random restarts.

Reference: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018,
https://arxiv.org/abs/1706.06083; used by Ye et al., 2019 (eq. 2) inside training and for evaluation.

Differs from the code of Ye et al.: (1) the random start is put inside [0, 1] before the first gradient, so that
every gradient is taken at an image; (2) the loss is a function of the images alone, so an attack cannot move
BatchNorm statistics. Examples do not couple as long as the loss normalises none by its neighbours.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rap_jax.attacks.norms import Norm, norm_of

LossFn = Callable[[jax.Array], jax.Array]
Start = Callable[[jax.Array, jax.Array, jax.Array | float], jax.Array]

# The gradient as it is: what makes it plain PGD.
PLAIN_GRADIENT = optax.identity()


def pgd(
    key: jax.Array,
    loss_fn: LossFn,
    images: jax.Array,
    *,
    epsilon: jax.Array | float,
    step_size: jax.Array | float,
    num_steps: int,
    norm: str = "linf",
    num_restarts: int = 1,
    random_start: bool = True,
    transform: optax.GradientTransformation = PLAIN_GRADIENT,
) -> jax.Array:
    """Raises `loss_fn` inside a norm ball around `images` and inside [0, 1].

    Meant to be called under `jax.jit`, where everything but the arrays is static.

    Args:
      key: typed PRNG key of the random start; or one for each example [N], and then an example's start depends on its
        own key alone, not on the batch that it is in. Not read if `random_start` is False.
      loss_fn: maps images [N, ...] to per-example losses [N].
      images: clean inputs in [0, 1], [N, ...]; the centre of each ball.
      epsilon: radius in input units (8/255, not 8); may be traced.
      step_size: length of a step in the same norm and units; may be traced.
      num_steps: gradient steps.
      norm: `linf` or `l2`.
      num_restarts: independent starts, run side by side by `vmap`; each example keeps its start of highest loss.
      random_start: begin at a uniform point of the ball instead of at the image.
      transform: what the gradient goes through before its steepest direction is taken, such as `optax.trace(0.9)`. Each
        start has a state of its own. It must not couple examples: a clip by the norm of the whole batch would.

    Returns:
      Adversarial images, shape and dtype of `images`. No gradient flows through them.

    Raises:
      ValueError: unknown norm, or an impossible number of steps, restarts or keys.
    """
    candidates = pgd_restarts(
        key,
        loss_fn,
        images,
        epsilon=epsilon,
        step_size=step_size,
        num_steps=num_steps,
        norm=norm,
        num_restarts=num_restarts,
        random_start=random_start,
        transform=transform,
    )
    if num_restarts == 1:
        return candidates[0]
    worst = jnp.argmax(jax.vmap(loss_fn)(candidates), axis=0)
    return jax.vmap(lambda i, starts: starts[i], in_axes=(0, 1))(worst, candidates)


def pgd_restarts(
    key: jax.Array,
    loss_fn: LossFn,
    images: jax.Array,
    *,
    epsilon: jax.Array | float,
    step_size: jax.Array | float,
    num_steps: int,
    norm: str = "linf",
    num_restarts: int = 1,
    random_start: bool = True,
    transform: optax.GradientTransformation = PLAIN_GRADIENT,
) -> jax.Array:
    """Like `pgd`, but returns what every restart found: [num_restarts, N, ...].

    An evaluation wants all of them: the restart of highest loss need not be one that is misclassified.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images have dtype {images.dtype}; expected floating point, with pixels in [0, 1].")
    for name, value in (("epsilon", epsilon), ("step_size", step_size)):
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; expected a finite number of 0 or more.")
    if num_steps < 0 or num_restarts < 1:
        raise ValueError(
            f"num_steps is {num_steps!r} and num_restarts is {num_restarts!r}; expected at least 0 steps and 1 restart."
        )
    ball = norm_of(norm)
    start = _start(ball, key, len(images)) if random_start else _no_start

    def one_start(key: jax.Array) -> jax.Array:
        first = _into_ball_and_box(ball, images, start(key, images, epsilon), epsilon)
        return _ascend(ball, loss_fn, images, first, epsilon, step_size, num_steps, transform)

    if num_restarts == 1:  # vmap over an axis of one would only get in the compiler's way
        return one_start(key)[None]
    split = lambda key: jax.random.split(key, num_restarts)
    return jax.vmap(one_start)(jax.vmap(split, out_axes=1)(key) if _one_for_each(key) else split(key))


def _one_for_each(key: jax.Array) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1


def _start(ball: Norm, key: jax.Array, num_examples: int) -> Start:
    """`ball.random`, for one key or one key for each example."""
    if not _one_for_each(key):
        return ball.random
    if len(key) != num_examples:
        raise ValueError(f"There are {len(key)} keys; expected one, or one for each of the {num_examples} images.")
    one = lambda key, image, epsilon: ball.random(key, image[None], epsilon)[0]
    return jax.vmap(one, in_axes=(0, 0, None))


def _no_start(key: jax.Array, images: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    del key, epsilon
    return jnp.zeros_like(images)


def _into_ball_and_box(ball: Norm, images: jax.Array, perturbation: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    """Ball first, then box: `images` are in the box, so clipping to it never lengthens a perturbation."""
    return jnp.clip(images + ball.project(perturbation, epsilon), 0.0, 1.0)


def _ascend(
    ball: Norm,
    loss_fn: LossFn,
    images: jax.Array,
    first: jax.Array,
    epsilon: jax.Array | float,
    step_size: jax.Array | float,
    num_steps: int,
    transform: optax.GradientTransformation,
) -> jax.Array:
    gradient_fn = jax.grad(lambda x: jnp.sum(loss_fn(x)))

    def step(_: int, state: tuple[jax.Array, optax.OptState]) -> tuple[jax.Array, optax.OptState]:
        adversarial, transform_state = state
        gradient, transform_state = transform.update(gradient_fn(adversarial), transform_state)
        moved = adversarial + step_size * ball.steepest(gradient)
        return _into_ball_and_box(ball, images, moved - images, epsilon), transform_state

    adversarial, _ = jax.lax.fori_loop(0, num_steps, step, (first, transform.init(first)))
    return jax.lax.stop_gradient(adversarial)
