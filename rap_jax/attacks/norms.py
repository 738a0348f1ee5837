"""The threat model, and the two norms that it may have: random start, steepest step, projection.

Perturbations have the shape of the images, [N, ...]; norms and projections are per example, over all other axes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rap_jax._runtime.arrays import at_least_float32, in_words, is_array
from rap_jax.attacks.checks import check_radius

# Adding a perturbation to a pixel and taking the difference again rounds twice in float32.
_ROUNDING = 1e-5
# Smallest divisor of a length: a vector of length zero stays zero instead of becoming NaN.
_TINY = 1e-12


class Norm(NamedTuple):
    """A norm and its balls, as pure functions."""

    # (key, images, epsilon) -> perturbation drawn uniformly from the ball of radius epsilon.
    random: Callable[[jax.Array, jax.Array, jax.Array | float], jax.Array]
    direction: Callable[[jax.Array, jax.Array], jax.Array]  # (key, images) -> random perturbation of norm 1
    # gradient -> the direction of norm 1 along which a linear loss rises most.
    steepest: Callable[[jax.Array], jax.Array]
    # (perturbation, epsilon) -> the nearest perturbation inside the ball.
    project: Callable[[jax.Array, jax.Array | float], jax.Array]
    size: Callable[[jax.Array], jax.Array]  # perturbation -> its norm, [N]


def _example_axes(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _linf_direction(key: jax.Array, images: jax.Array) -> jax.Array:
    drawn = jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)
    return drawn / (jnp.abs(drawn).max(_example_axes(drawn), keepdims=True) + _TINY)


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
    return epsilon * radius * _l2_steepest(jax.random.normal(direction_key, images.shape, images.dtype))


def _l2_steepest(gradient: jax.Array) -> jax.Array:
    # The gradient of a confident example may be 1e-30: its square is 0 in float32, so it is scaled to 1 first. Only a
    # gradient that is exactly zero has no direction; that example stays where it is.
    largest = jnp.abs(gradient).max(_example_axes(gradient), keepdims=True)
    scaled = at_least_float32(gradient / jnp.where(largest > 0, largest, 1.0))
    return (scaled / jnp.maximum(_l2_length(scaled), _TINY)).astype(gradient.dtype)


def _l2_project(perturbation: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    length = _l2_length(perturbation)
    share = jnp.minimum(1.0, jnp.asarray(epsilon, length.dtype) / jnp.maximum(length, _TINY))
    return perturbation * share.astype(perturbation.dtype)


NORMS: dict[str, Norm] = {
    "linf": Norm(
        random=lambda key, images, epsilon: epsilon * jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0),
        direction=_linf_direction,
        steepest=jnp.sign,
        project=lambda perturbation, epsilon: jnp.clip(perturbation, -epsilon, epsilon),
        size=lambda perturbation: jnp.abs(perturbation).max(_example_axes(perturbation)),
    ),
    "l2": Norm(
        random=_l2_random,
        direction=lambda key, images: _l2_steepest(jax.random.normal(key, images.shape, images.dtype)),
        steepest=_l2_steepest,
        project=_l2_project,
        size=lambda perturbation: _l2_length(perturbation).reshape(perturbation.shape[0]),
    ),
}


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """What an attacker may do to an image: move it within a norm ball around it, and within [0, 1].

    A pytree with the norm as static data, so that the radius may be traced. With a known radius it is hashable, and may
    be a static argument of `jax.jit`.

    Raises:
      ValueError: an unknown norm, a radius that is no number of 0 or more, or one above 1 under `linf`.
    """

    norm: str  # `linf` or `l2`
    epsilon: jax.Array | float  # radius in the units of the images (8/255, not 8)

    def __post_init__(self) -> None:
        if not isinstance(self.norm, str) or self.norm not in NORMS:
            raise ValueError(f"norm is {self.norm!r}; expected one of {', '.join(NORMS)}.")
        object.__setattr__(self, "epsilon", check_radius(self.epsilon, self.norm))

    def random_start(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Perturbations to begin with, drawn uniformly from the ball, [N, ...].

        Args:
          key: typed PRNG key; or one for each example [N], on which alone its draw then depends.
          images: clean, [N, ...].
        """
        radius = self._radius(images.dtype)
        draw = lambda key, images: NORMS[self.norm].random(key, images, radius)
        return _draw_for_each(draw, key, images) if has_key_for_each(key) else draw(key, images)

    def random_direction(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Random perturbations of norm 1, [N, ...], each from its own key: typed PRNG keys [N]."""
        return _draw_for_each(NORMS[self.norm].direction, keys, images)

    def steepest(self, gradient: jax.Array) -> jax.Array:
        """The directions of norm 1 along which losses with this gradient [N, ...] rise most; 0 where it is 0."""
        return NORMS[self.norm].steepest(gradient)

    def size(self, perturbation: jax.Array) -> jax.Array:
        """Norms of perturbations [N, ...], [N]."""
        return NORMS[self.norm].size(perturbation)

    def project(self, perturbation: jax.Array) -> jax.Array:
        """The nearest perturbations inside the ball, [N, ...]."""
        return NORMS[self.norm].project(perturbation, self._radius(perturbation.dtype))

    def perturb(self, images: jax.Array, perturbation: jax.Array) -> jax.Array:
        """The images after the perturbations [N, ...], projected onto the ball and then clipped to [0, 1].

        `images` are in [0, 1], so that clipping never lengthens a perturbation.
        """
        return jnp.clip(images + self.project(perturbation), 0, 1)

    def contains(self, adversarial: jax.Array, images: jax.Array) -> jax.Array:
        """Which of `adversarial` [N, ...] the attacker may make of `images`, up to rounding: bool [N].

        False for NaN as well, which fails every comparison. The difference is taken in float32 or wider, and its
        rounding alone is allowed for, whatever the dtype of the images: an image that is rounded to bfloat16 may be
        outside.

        Raises:
          ValueError: unequal shapes.
        """
        if adversarial.shape != images.shape:
            found, expected = in_words(adversarial), in_words(images)
            raise ValueError(f"adversarial images are {found}; expected the shape of {expected}.")
        adversarial, images = at_least_float32(adversarial), at_least_float32(images)
        dtype = max(adversarial.dtype, images.dtype, key=lambda dtype: dtype.itemsize)
        radius = self._radius(dtype) * (1 + _ROUNDING) + 1e-6
        in_range = ((adversarial >= 0) & (adversarial <= 1)).all(_example_axes(adversarial))
        return in_range & (self.size(adversarial.astype(dtype) - images.astype(dtype)) <= radius)

    def _radius(self, dtype: Any) -> Any:
        """In `dtype` where it is an array: strict promotion refuses another one."""
        radius: Any = self.epsilon
        return radius.astype(dtype) if is_array(radius) else radius


def _unflatten(norm: str, children: tuple[Any]) -> ThreatModel:
    """Without the checks: JAX also builds trees of what is no number."""
    threat_model = object.__new__(ThreatModel)
    object.__setattr__(threat_model, "norm", norm)
    object.__setattr__(threat_model, "epsilon", *children)
    return threat_model


jax.tree_util.register_pytree_node(
    ThreatModel, lambda threat_model: ((threat_model.epsilon,), threat_model.norm), _unflatten
)


def check_threat_model(threat_model: Any) -> ThreatModel:
    """The threat model as it is; a `ValueError` for anything else."""
    if not isinstance(threat_model, ThreatModel):
        raise ValueError(f'threat_model is {threat_model!r}; expected one, such as ThreatModel("linf", 8 / 255).')
    return threat_model


def has_key_for_each(key: jax.Array) -> bool:
    """Whether these are typed PRNG keys [N], one for each example."""
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1


def _draw_for_each(draw: Callable[[jax.Array, jax.Array], jax.Array], keys: jax.Array, images: jax.Array) -> jax.Array:
    return jax.vmap(lambda key, image: draw(key, image[None])[0])(keys, images)


def finite(gradient: jax.Array) -> jax.Array:
    """Gradients [N, ...] with 0 for NaN, and with no entry so large that the sum over an image would be infinite."""
    largest = float(jnp.finfo(gradient.dtype).max) / math.prod(gradient.shape[1:])
    return jnp.where(jnp.isnan(gradient), 0, jnp.clip(gradient, -largest, largest))


def has_nan(arrays: jax.Array) -> jax.Array:
    """Which examples of [N, ...] hold a NaN, bool [N]."""
    return jnp.isnan(arrays).any(_example_axes(arrays))
