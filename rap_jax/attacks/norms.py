"""Threat models: what an attack needs to know of a norm, as a few small functions.

Perturbations have the shape of the images, [N, ...]; norms and projections are per example, over all other axes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rap_jax._runtime.arrays import at_least_float32, in_words
from rap_jax.attacks.checks import check_size

# Adding a perturbation to a pixel and taking the difference again rounds twice in float32.
_ROUNDING = 1e-5
# Smallest divisor of a length: a vector of length zero stays zero instead of becoming NaN.
_TINY = 1e-12


class Norm(NamedTuple):
    """A norm ball, as pure functions.

    Attributes:
      random: (key, images, epsilon) -> perturbation drawn uniformly from the ball of radius epsilon.
      direction: (key, images) -> random perturbation of norm 1.
      steepest: gradient -> the direction of norm 1 along which a linear loss rises most.
      project: (perturbation, epsilon) -> the nearest perturbation inside the ball.
      size: perturbation -> its norm, [N].
    """

    random: Callable[[jax.Array, jax.Array, jax.Array | float], jax.Array]
    direction: Callable[[jax.Array, jax.Array], jax.Array]
    steepest: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array, jax.Array | float], jax.Array]
    size: Callable[[jax.Array], jax.Array]


def _example_axes(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _linf_random(key: jax.Array, images: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    return epsilon * jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)


def _linf_direction(key: jax.Array, images: jax.Array) -> jax.Array:
    drawn = jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)
    return drawn / (jnp.abs(drawn).max(_example_axes(drawn), keepdims=True) + _TINY)


def _linf_project(perturbation: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    return jnp.clip(perturbation, -epsilon, epsilon)


def _linf_size(perturbation: jax.Array) -> jax.Array:
    return jnp.abs(perturbation).max(_example_axes(perturbation))


def _l2_length(x: jax.Array) -> jax.Array:
    """In float32 or wider: the squares of many pixels overflow float16."""
    x = at_least_float32(x)
    return jnp.sqrt(jnp.sum(x * x, _example_axes(x), keepdims=True))


def _l2_random(key: jax.Array, images: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    direction_key, radius_key = jax.random.split(key)
    num_dimensions = math.prod(images.shape[1:])
    # The share of a ball's volume inside radius r grows as r^d, so uniform points need u^(1/d).
    radius_shape = (images.shape[0],) + (1,) * (images.ndim - 1)
    radius = jax.random.uniform(radius_key, radius_shape, images.dtype) ** (1 / num_dimensions)
    return epsilon * radius * _l2_direction(direction_key, images)


def _l2_direction(key: jax.Array, images: jax.Array) -> jax.Array:
    return _l2_steepest(jax.random.normal(key, images.shape, images.dtype))


def _l2_steepest(gradient: jax.Array) -> jax.Array:
    # The gradient of a confident example may be 1e-30: its square is 0 in float32, so it is scaled to 1 first. Only a
    # gradient that is exactly zero has no direction; that example stays where it is.
    largest = jnp.abs(gradient).max(_example_axes(gradient), keepdims=True)
    scaled = at_least_float32(gradient / jnp.where(largest > 0, largest, 1.0))
    return (scaled / jnp.maximum(_l2_length(scaled), _TINY)).astype(gradient.dtype)


def _l2_project(perturbation: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    share = jnp.minimum(1.0, epsilon / jnp.maximum(_l2_length(perturbation), _TINY))
    return perturbation * share.astype(perturbation.dtype)


def _l2_size(perturbation: jax.Array) -> jax.Array:
    perturbation = at_least_float32(perturbation)
    return jnp.sqrt(jnp.sum(perturbation * perturbation, _example_axes(perturbation)))


NORMS: dict[str, Norm] = {
    "linf": Norm(_linf_random, _linf_direction, jnp.sign, _linf_project, _linf_size),
    "l2": Norm(_l2_random, _l2_direction, _l2_steepest, _l2_project, _l2_size),
}


def norm_of(name: str) -> Norm:
    """The norm of that name; a `ValueError` names the known ones."""
    if name not in NORMS:
        raise ValueError(f"norm is {name!r}; expected one of {', '.join(NORMS)}.")
    return NORMS[name]


def is_inside(
    adversarial: jax.Array, images: jax.Array, *, epsilon: jax.Array | float, norm: str = "linf"
) -> jax.Array:
    """Which of `adversarial` [N, ...] lie in the ball around `images` and in [0, 1], up to rounding: bool [N].

    False for NaN as well, which fails every comparison. The difference is taken in float32 or wider, and its rounding
    alone is allowed for, whatever the dtype of the images: an image that is rounded to bfloat16 may be outside.

    Raises:
      ValueError: unequal shapes, an unknown norm, or a radius that is negative or no number.
    """
    if adversarial.shape != images.shape:
        raise ValueError(f"adversarial images are {in_words(adversarial)}; expected the shape of {in_words(images)}.")
    adversarial, images = at_least_float32(adversarial), at_least_float32(images)
    dtype = max(adversarial.dtype, images.dtype, key=lambda dtype: dtype.itemsize)
    radius = check_size("epsilon", epsilon, dtype) * (1 + _ROUNDING) + 1e-6
    in_box = ((adversarial >= 0) & (adversarial <= 1)).all(_example_axes(adversarial))
    return in_box & (norm_of(norm).size(adversarial.astype(dtype) - images.astype(dtype)) <= radius)


def finite(gradient: jax.Array) -> jax.Array:
    """Gradients [N, ...] with 0 for NaN, and with no entry so large that the sum over an image would be infinite."""
    largest = float(jnp.finfo(gradient.dtype).max) / math.prod(gradient.shape[1:])
    return jnp.where(jnp.isnan(gradient), 0, jnp.clip(gradient, -largest, largest))


def has_nan(arrays: jax.Array) -> jax.Array:
    """Which examples of [N, ...] hold a NaN, bool [N]."""
    return jnp.isnan(arrays).any(_example_axes(arrays))
