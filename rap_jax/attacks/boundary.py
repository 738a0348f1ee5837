"""The decision boundary between two classes, made linear at an image.

Where z are the logits, the boundary to the class t is z_t - z_label = 0. At an image x it is taken as the hyperplane on
which the linear function of the value `height` = z_t - z_label at x and of the gradient `normal` there is 0.
"""

import jax
import jax.numpy as jnp
from jax import lax

from rap_jax.attacks.checks import LogitsFn
from rap_jax.attacks.norms import finite

# Smallest divisor of a distance to a hyperplane.
_TINY = 1e-12


def boundary_to(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The boundary to a given class, by one forward and one backward pass.

    Args:
      logits_fn: images [N, ...] -> logits [N, K].
      images: where to make it linear, [N, ...].
      labels, targets: whole numbers, [N]; height and normal are zero where they are the same.

    Returns:
      height [N], negative where the label is ahead, and normal [N, ...].
    """
    logits, pull_back = jax.vjp(logits_fn, images)
    one_hot = lambda classes: jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    difference = one_hot(targets) - one_hot(labels)
    return jnp.sum(difference * logits, axis=-1), pull_back(difference)[0]


def nearest_boundary(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, norm: str
) -> tuple[jax.Array, jax.Array]:
    """The boundary that is nearest as long as it is taken as linear and the box is left out.

    The classes are gone through one after the other: side by side, by `vmap`, they take K times the memory, and on a
    CPU 1.5 to 3 times as long. To share one forward pass among them gained nothing there.

    Arguments and result as in `boundary_to`; `norm` is the one of the distance, `linf` or `l2`.
    """
    classes = jnp.arange(jax.eval_shape(logits_fn, images).shape[-1], dtype=labels.dtype)
    to_class = lambda k: boundary_to(logits_fn, images, labels, jnp.full_like(labels, k))
    heights, normals = lax.map(to_class, classes)
    distances = _distances(norm, heights, jax.vmap(finite)(normals))
    left_out = (classes[:, None] == labels[None]) | jnp.isnan(distances)  # argmin takes NaN for the least
    distances = jnp.where(left_out, jnp.inf, distances)
    nearest = jnp.argmin(distances, axis=0)
    choose = jax.vmap(lambda nearest, of_class: of_class[nearest], in_axes=(0, 1))
    return choose(nearest, heights), choose(nearest, normals)


def _distances(norm: str, heights: jax.Array, normals: jax.Array) -> jax.Array:
    """|height| over the dual norm of the normal, [K, N]: L1 for L-infinity, L2 for L2."""
    flat = normals.reshape(*heights.shape, -1)
    dual = jnp.sum(jnp.abs(flat), axis=-1) if norm == "linf" else jnp.sqrt(jnp.sum(flat * flat, axis=-1))
    return jnp.abs(heights) / (dual + _TINY)
