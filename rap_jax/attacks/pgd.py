"""Projected gradient descent on the images: with random restarts, with momentum, and in one step.

`pgd`, `pgd_restarts`. Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018,
https://arxiv.org/abs/1706.06083; used by Ye et al., 2019 (eq. 2) inside training and for evaluation.

Differs from the code of Ye et al.: (1) the random start is put inside [0, 1] before the first gradient, so that
every gradient is taken at an image; (2) the loss is a function of the images alone, so an attack cannot move
BatchNorm statistics; (3) where an entry of a gradient is NaN the pixel stays for this step, and an infinite one counts
as the largest of its sign, so that images are never NaN. Examples do not couple as long as the loss normalises none by
its neighbours.

Images of 16 bits are moved in float32, or small steps would be lost; the loss sees them rounded, each pixel towards the
clean one, as they are handed over: so they are inside the ball.

`momentum_pgd` (MI-FGSM): steps follow what the gradients of all steps so far have in common. Dong et al., "Boosting
Adversarial Attacks with Momentum", 2018, https://arxiv.org/abs/1710.06081, section 3 and algorithm 1. Its images fool
other networks more often than those of PGD. Differs from the paper: (1) step size and radius are two arguments; the
paper's step is epsilon / num_steps; (2) every step ends inside [0, 1]; (3) the start may be random, and more than one.

`fgsm`: one step to the border of the ball. Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015,
https://arxiv.org/abs/1412.6572, section 4. It finds the worst image of a loss that is linear inside the ball and is
weak against any other. The one step from a random start that cheap training takes (Wong et al., 2020) is
`pgd(..., num_steps=1, step_size=1.25 * epsilon)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rap_jax._runtime.arrays import at_least_float32, is_array
from rap_jax.attacks.checks import (
    LossFn,
    check_count,
    check_images,
    check_radius,
    check_size,
    checked_loss,
    warn_of_nan,
)
from rap_jax.attacks.norms import Norm, finite, has_nan, norm_of

Start = Callable[[jax.Array, jax.Array, jax.Array | float], jax.Array]
_State = tuple[jax.Array, optax.OptState, jax.Array]

# The gradient as it is: what makes it plain PGD.
PLAIN_GRADIENT = optax.identity()


class PgdSettings(NamedTuple):
    """What `pgd` takes beside key, loss and images."""

    epsilon: jax.Array | float
    step_size: jax.Array | float
    num_steps: int
    norm: str = "linf"
    num_restarts: int = 1
    random_start: bool = True
    transform: optax.GradientTransformation = PLAIN_GRADIENT


class Ascent(NamedTuple):
    """What restarts found. Attributes: images: [R, N, ...]; sound: no gradient on the way was NaN, bool [R, N]."""

    images: jax.Array
    sound: jax.Array


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
      num_restarts: independent starts, run side by side by `vmap`; each example keeps its start of highest loss. One
        whose loss is NaN comes after all others.
      random_start: begin at a uniform point of the ball instead of at the image.
      transform: what the gradient goes through before its steepest direction is taken, such as `optax.trace(0.9)`. Each
        start has a state of its own. It must not couple examples: a clip by the norm of the whole batch would.

    Returns:
      Adversarial images, shape and dtype of `images`, never NaN. No gradient flows through them.

    Raises:
      ValueError: an unknown norm, an impossible number of steps, restarts or keys, a radius or step that is no number
        of 0 or more, images that are not float [N, ...] in [0, 1], or losses that are not float [N].

    Warns:
      RuntimeWarning: a gradient was NaN; outside `jax.jit` only, where that is known.
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
    if num_restarts == 1 or not len(images):
        return candidates[0]
    losses = jax.vmap(loss_fn)(candidates)
    worst = jnp.argmax(jnp.where(jnp.isnan(losses), -jnp.inf, losses), axis=0)
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
    settings = PgdSettings(epsilon, step_size, num_steps, norm, num_restarts, random_start, transform)
    found = ascend(key, loss_fn, images, settings)
    warn_of_nan(found.sound.all(0), "loss_fn")
    return found.images


def ascend(key: jax.Array, loss_fn: LossFn, images: jax.Array, settings: PgdSettings) -> Ascent:
    """`pgd_restarts`, which also says for which images it may be weaker than it should: where a gradient was NaN."""
    images = check_images(images)
    clean = at_least_float32(images)
    settings = _checked(settings, clean.dtype)
    ball = norm_of(settings.norm)
    start = _start(ball, key, len(images)) if settings.random_start else _no_start
    if not len(images):  # which many a network cannot reshape
        shape = (settings.num_restarts, 0)
        return Ascent(jnp.zeros(shape + images.shape[1:], images.dtype), jnp.ones(shape, bool))
    gradient_fn = jax.grad(lambda x: jnp.sum(checked_loss(loss_fn)(x)))
    gradient_at = lambda x: gradient_fn(_rounded(x, images)).astype(clean.dtype)

    def one_start(key: jax.Array) -> Ascent:
        first = _into_ball_and_box(ball, clean, start(key, clean, settings.epsilon), settings.epsilon)
        end, sound = _ascend(ball, gradient_at, clean, first, settings)
        return Ascent(_rounded(end, images), sound)

    if settings.num_restarts == 1:  # vmap over an axis of one would only get in the compiler's way
        return jax.tree.map(lambda x: x[None], one_start(key))
    split = lambda key: jax.random.split(key, settings.num_restarts)
    return jax.vmap(one_start)(jax.vmap(split, out_axes=1)(key) if _one_for_each(key) else split(key))


def _checked(settings: PgdSettings, dtype: Any) -> PgdSettings:
    """Settings that can be, with radius and step in `dtype` where they are traced."""
    return settings._replace(
        epsilon=check_radius(settings.epsilon, settings.norm, dtype),
        step_size=check_size("step_size", settings.step_size, dtype),
        num_steps=check_count("num_steps", settings.num_steps, 0, "0 steps"),
        num_restarts=check_count("num_restarts", settings.num_restarts, 1, "1 restart"),
    )


def _one_for_each(key: jax.Array) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1


def _start(ball: Norm, key: jax.Array, num_examples: int) -> Start:
    """`ball.random`, for one key or one key for each example."""
    if not is_array(key):
        raise ValueError(f"key is {key!r}; expected a typed key, jax.random.key(seed).")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim > 1:
        raise ValueError(f"There are keys {list(key.shape)}; expected one, or one for each image [{num_examples}].")
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


def _rounded(x: jax.Array, images: jax.Array) -> jax.Array:
    """`x` in the dtype of `images`, each pixel rounded towards theirs, so that no perturbation grows."""
    if x.dtype == images.dtype:
        return x
    info, clean = jnp.finfo(images.dtype), images.astype(x.dtype)
    nearest = lax.reduce_precision(x, info.nexp, info.nmant)  # XLA may leave out a cast there and back
    farther = jnp.abs(nearest - clean) > jnp.abs(x - clean)
    nearest = nearest.astype(images.dtype)
    return jnp.where(farther, jnp.nextafter(nearest, images), nearest)


def _ascend(
    ball: Norm,
    gradient_fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    first: jax.Array,
    settings: PgdSettings,
) -> tuple[jax.Array, jax.Array]:
    """The last images [N, ...], and where no gradient was NaN [N], which costs nothing where it is not read."""
    transform = settings.transform

    def step(_: int, state: _State) -> _State:
        adversarial, transform_state, sound = state
        gradient = gradient_fn(adversarial)
        direction, transform_state = transform.update(finite(gradient), transform_state)
        moved = adversarial + settings.step_size * ball.steepest(finite(direction))
        inside = _into_ball_and_box(ball, images, moved - images, settings.epsilon)
        return inside, transform_state, sound & ~has_nan(gradient)

    begin = (first, transform.init(first), jnp.ones(len(images), bool))
    adversarial, _, sound = lax.fori_loop(0, settings.num_steps, step, begin)
    return lax.stop_gradient(adversarial), sound


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
