"""The convolution of `conv2d` as XLA has it: the definition, and the form for GPU and TPU."""

import jax
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def xla_conv(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """[N, H, W, C] and [k, k, C, F] -> [N, H', W', F]: cross-correlation with zeros on each of the four sides."""
    sides = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(images, kernel, (stride, stride), sides, dimension_numbers=DIMENSIONS)
