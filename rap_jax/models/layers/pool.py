"""2x2 max pooling whose gradient is quick on the CPU.

The gradient of `lax.reduce_window` is slow on XLA:CPU; that of four strided slices is not. Ties go to the first of
equals in row order, and NaN wins, as in PyTorch."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.jit  # so that it stays one call in a jaxpr, by whose program an export to ONNX knows it
def max_pool(images: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H // 2, W // 2, C]. An odd last row or column is not pooled, as in PyTorch."""
    top, bottom = _every_second(images, axis=1)
    return _first_max(_first_max(*_every_second(top, axis=2)), _first_max(*_every_second(bottom, axis=2)))


def _every_second(images: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """The even and the odd places of an axis, as many of each."""
    # Not [::2]: with a batch of any size, as in an exported file, that would be a gather.
    end = images.shape[axis] // 2 * 2
    return lax.slice_in_dim(images, 0, end, 2, axis), lax.slice_in_dim(images, 1, end, 2, axis)


def _first_max(first: jax.Array, second: jax.Array) -> jax.Array:
    """`jnp.maximum` but for the gradient of equals, which `jnp.maximum` would halve: here all of it goes to `first`."""
    return jnp.where((second > first) | jnp.isnan(second), second, first)
