"""Convolution, ReLU and 2x2 max pooling as one layer that stays fast inside an attack loop.

    layer = ConvReluPool(features=8, kernel_size=5)     # "same" padding, stride 1
    variables = layer.init(key, images)                 # {"params": {"kernel": [5, 5, C, 8], "bias": [8]}}
    pooled = layer.apply(variables, images)             # [N, H, W, C] -> [N, H/2, W/2, 8]

Two implementations compute the same function:

  xla    `lax.conv_general_dilated` and `lax.reduce_window`: right for GPU and TPU, and the definition.
  cpu    one matrix product per layer. XLA:CPU is slow at two things that a PGD attack does all the time: the gradient
         of a convolution with respect to its input when it stands inside a loop, and the gradient of `reduce_window`.
         A matrix product and its gradient have neither problem; `benchmarks/conv_relu_pool.py` measures what it
         brings.

How `cpu` works, for a 5x5 kernel. One pooled pixel is the maximum of four convolution outputs, which are
neighbours: together they see only a 6x6 patch of the image.

    6x6 patch of one image   x   matrix [36 C, 4 F]   ->   the four outputs under one pooling window, F features each

The columns of the matrix are the kernel laid at the four places where it fits into the patch, with zeros around it.
Patches of neighbouring windows start 2 pixels apart, so a patch is 3x3 whole "cells" of 2x2 pixels: the image is
rearranged into cells once, and all patches are nine shifted copies of it, joined.

Ties. The largest of four equal outputs is the first in row order, and it alone gets the gradient, as in PyTorch and
in `reduce_window`. Images clipped to [0, 1] have flat regions, so ties do occur. Rounding can break a tie that is
exact on paper (a region of equal non-zero pixels) differently in the two implementations.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rap_jax.config import require
from rap_jax.models.implementation import Implementation, use_cpu_form
from rap_jax.models.initializers import Initializer, bias_initializer, kernel_initializer

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class ConvReluPool(nn.Module):
    """Convolution with "same" padding and bias, ReLU, 2x2 max pooling. The parameters are those of `nn.Conv`.

    Attributes:
        features: number of output channels.
        kernel_size: height and width of the kernel, odd.
        kernel_init: how the kernel starts; the bias is PyTorch's uniform(+-1/sqrt(fan_in)).
        implementation: see `conv_relu_pool`.
    """

    features: int
    kernel_size: int
    kernel_init: Initializer = kernel_initializer("xavier_uniform")
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        fan_in = self.kernel_size * self.kernel_size * images.shape[-1]
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", bias_initializer(fan_in), (self.features,))
        return conv_relu_pool(images, kernel, bias, implementation=self.implementation)


def conv_relu_pool(
    images: jax.Array, kernel: jax.Array, bias: jax.Array, *, implementation: Implementation = "auto"
) -> jax.Array:
    """2x2 max pooling of relu(convolution + bias), stride 1, "same" padding.

    Args:
        images: [N, H, W, C], any N.
        kernel: [k, k, C, F] with k odd.
        bias: [F].
        implementation: `cpu` for the CPU (H and W even), `xla` for every device and size, `auto` chooses when the
            function is traced: `cpu` if JAX's default backend is the CPU and H and W are even, `xla` otherwise.

    Returns:
        [N, H // 2, W // 2, F]. An odd last row or column is not pooled, as in PyTorch.

    Raises:
        ValueError: for an even or oblong kernel, an unknown implementation, or `cpu` with an odd H or W.
    """
    height, width = images.shape[1:3]
    size = kernel.shape[0]
    require(size % 2 == 1 and kernel.shape[1] == size, "kernel size", kernel.shape[:2], "two equal odd numbers")
    even = height % 2 == 0 and width % 2 == 0
    require(even or implementation != "cpu", "image size", (height, width), "even sizes; or use implementation xla")
    if use_cpu_form(implementation) and even:
        scores = _pool_by_cells(images, kernel)
    else:
        scores = _pool_by_xla(images, kernel)
    # Adding a bias and ReLU are increasing, so they commute with the maximum; after it there is 4 times less to do.
    return nn.relu(scores + bias.reshape(1, 1, 1, -1))


def _pool_by_xla(images: jax.Array, kernel: jax.Array) -> jax.Array:
    scores = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=_DIMENSIONS)
    return lax.reduce_window(scores, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _pool_by_cells(images: jax.Array, kernel: jax.Array) -> jax.Array:
    patches = _patches(images, kernel.shape[0])
    scores = lax.dot_general(patches, _patch_matrix(kernel), (((3,), (0,)), ((), ())))
    return _first_max(scores.reshape(*scores.shape[:3], 4, -1))


def _patches(images: jax.Array, size: int) -> jax.Array:
    """The patch seen by each pooling window, [N, H/2, W/2, (size+1)^2 C], ordered by cell, pixel in cell, channel."""
    half, num_cells = size // 2, (size + 1) // 2
    cells = _to_cells(jnp.pad(images, ((0, 0), (half, half), (half, half), (0, 0))))
    rows, columns = images.shape[1] // 2, images.shape[2] // 2
    shifts = [(i, j) for i in range(num_cells) for j in range(num_cells)]
    return jnp.concatenate([cells[:, i : i + rows, j : j + columns] for i, j in shifts], axis=-1)


def _to_cells(images: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H/2, W/2, 4 C]: the four pixels of each 2x2 cell side by side."""
    batch, height, width, channels = images.shape
    cells = images.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(batch, height // 2, width // 2, 4 * channels)


def _patch_matrix(kernel: jax.Array) -> jax.Array:
    """The matrix [(k+1)^2 C, 4 F] from a patch to the four outputs under one pooling window, in row order."""
    size, _, channels, features = kernel.shape
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    placed = [jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i, j in places]
    # One patch is (size+1)/2 cells of 2 pixels each way; its rows are ordered as `_patches` orders them.
    num_cells = (size + 1) // 2
    matrix = jnp.stack(placed, axis=3).reshape(num_cells, 2, num_cells, 2, channels, 4 * features)
    return matrix.transpose(0, 2, 1, 3, 4, 5).reshape(-1, 4 * features)


@jax.custom_jvp
def _first_max(scores: jax.Array) -> jax.Array:
    """Maximum over the axis of four, [N, h, w, 4, F] -> [N, h, w, F]; the gradient goes to the first of equals."""
    return scores.max(axis=3)


@_first_max.defjvp
def _first_max_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (scores,), (tangent,) = primals, tangents
    # `max` alone would share the gradient among equals; argmax returns the first of them.
    first = jax.nn.one_hot(jnp.argmax(scores, axis=3), 4, axis=3, dtype=scores.dtype)
    return _first_max(scores), (tangent * first).sum(axis=3)
