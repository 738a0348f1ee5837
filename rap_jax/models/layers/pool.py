"""2x2 max pooling, alone and in one layer with a convolution and ReLU that stays fast inside an attack loop.

    pooled = max_pool(images)                           # [N, H, W, C] -> [N, H // 2, W // 2, C]

    layer = ConvReluPool(features=8, kernel_size=5)     # "same" padding, stride 1
    variables = layer.init(key, images)                 # {"params": {"kernel": [5, 5, C, 8], "bias": [8]}}
    pooled = layer.apply(variables, images)             # [N, H, W, C] -> [N, H/2, W/2, 8]

    layer = ConvNormReluPool(features=8, kernel_size=5) # with BatchNorm before the ReLU, and no bias

Two implementations compute the same function:

  xla    `lax.conv_general_dilated` and `lax.reduce_window`: for GPU and TPU, and the definition.
  cpu    XLA:CPU is slow at two things that a PGD attack does all the time: the gradient of a convolution with respect
         to its input when it stands inside a loop, and the gradient of `reduce_window`. So a layer with many channels
         is `conv2d`, which has a form for that, and a maximum over windows; a layer with few is one matrix product,
         which needs no convolution at all. `benchmarks/conv_relu_pool.py` measures the gain.

How the matrix product works, for a 5x5 kernel. One pooled pixel is the maximum of four convolution outputs, which are
neighbours: together they see only a 6x6 patch of the image.

    6x6 patch of one image   x   matrix [36 C, 4 F]   ->   the four outputs under one pooling window, F features each

The columns of the matrix are the kernel laid at the four places where it fits into the patch, with zeros around it.
Patches of neighbouring windows start 2 pixels apart, so a patch is 3x3 whole "cells" of 2x2 pixels: the image is
rearranged into cells once, and all patches are nine shifted copies of it, joined. The zeros cost 1.44 times the
arithmetic. With one channel and few features they matter less than copying small patches, and the cells are 4x4: a
patch of 2x2 cells sees the sixteen outputs under four windows.

Ties. The largest of four equal outputs is the first in row order, and it alone gets the gradient, as in PyTorch and
in `reduce_window`. Images clipped to [0, 1] have flat regions, so ties do occur. Rounding can break a tie that is
exact on paper (a region of equal non-zero pixels) differently in the two implementations.

`max_pool` is four strided slices: the gradient of `lax.reduce_window` is slow on XLA:CPU. NaN wins, as in PyTorch.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rap_jax.config import require
from rap_jax.models.layers.batch_norm import BatchNorm
from rap_jax.models.layers.convolution import Implementation, from_cells, use_cpu_form, xla_conv
from rap_jax.models.layers.initializers import Initializer, bias_initializer, kernel_initializer
from rap_jax.models.layers.linear import conv2d

# From these numbers on the arithmetic of zeros costs more than it saves.
_MANY_CHANNELS, _MANY_FEATURES = 8, 32
# Comparing whole slices is quicker than argmax where a slice fills vector registers, and slower where it does not.
_VECTOR_SIZE = 16


class ConvReluPool(nn.Module):
    """Convolution with "same" padding and bias, ReLU, 2x2 max pooling. The parameters are those of `nn.Conv`."""

    features: int  # number of output channels
    kernel_size: int  # height and width of the kernel, odd
    # Of the kernel; the bias is drawn from PyTorch's uniform(+-1/sqrt(fan_in)).
    kernel_init: Initializer = kernel_initializer("xavier_uniform")
    implementation: Implementation = "auto"  # see `conv_relu_pool`

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", bias_initializer(math.prod(shape[:3])), (self.features,), jnp.float32)
        return conv_relu_pool(images, kernel, bias, implementation=self.implementation)


class ConvNormReluPool(nn.Module):
    """Convolution with "same" padding, `BatchNorm`, ReLU, 2x2 max pooling; all parameters lie in this layer.

    The maximum is taken of normed values: a scale may be negative, and then the largest input is the smallest output.
    """

    features: int  # number of output channels
    kernel_size: int  # height and width of the kernel, odd
    kernel_init: Initializer = kernel_initializer("xavier_uniform")
    implementation: Implementation = "auto"  # see `conv_relu_pool`
    folded: bool = False  # a `ConvReluPool`, which the norm has been made part of

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H // 2, W // 2, features]; see `BatchNorm` for `train`."""
        implementation = self.implementation
        if self.folded:
            layer = ConvReluPool(self.features, self.kernel_size, self.kernel_init, implementation)
            nn.share_scope(self, layer)
            return layer(images)
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        norm = BatchNorm(self.features)
        nn.share_scope(self, norm)
        if train:
            return _norm_relu_pool(images, kernel, functools.partial(norm, train=True), implementation)
        # In evaluation mode the norm is a factor and an offset per filter. With its sign inside the kernel the fast
        # layer can be used, which is what an attack calls most.
        factor, offset = norm.running()
        return conv_relu_pool(images, kernel * factor.reshape(1, 1, 1, -1), offset, implementation=implementation)


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
    if not use_cpu_form(implementation) or not even:
        return _relu_with_bias(_pool_by_xla(images, kernel), bias)
    if _is_large(kernel):
        return _relu_with_bias(max_pool(conv2d(images, kernel, padding=size // 2, implementation="cpu")), bias)
    return _by_cells(images, kernel, bias)


def _is_large(kernel: jax.Array) -> bool:
    return kernel.shape[2] >= _MANY_CHANNELS and kernel.shape[3] >= _MANY_FEATURES


def _norm_relu_pool(
    images: jax.Array, kernel: jax.Array, norm: Callable[[jax.Array], jax.Array], implementation: Implementation
) -> jax.Array:
    """Pooling of relu(norm(convolution)), as `conv_relu_pool`; `norm` maps [..., F] -> [..., F], by all axes."""
    if not use_cpu_form(implementation) or not has_conv_pool(images, kernel):
        outputs = conv2d(images, kernel, padding=kernel.shape[0] // 2, implementation=implementation)
        return nn.relu(max_pool(norm(outputs)))
    return nn.relu(conv_pool(images, kernel, norm))


def has_conv_pool(images: jax.Array, kernel: jax.Array) -> bool:
    """Whether `conv_pool` takes images [N, H, W, C] and a kernel [k, k, C, F], and is the quicker form for them."""
    even = images.shape[1] % 2 == 0 and images.shape[2] % 2 == 0
    return even and kernel.shape[0] % 2 == 1 and not _is_large(kernel)


def conv_pool(images: jax.Array, kernel: jax.Array, between: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """2x2 max pooling of between(convolution), stride 1, "same" padding, where `has_conv_pool`; for the CPU.

    `between` maps [..., F] -> [..., F], entry by entry, or by all axes but the last.
    """
    scores = _window_scores(images, kernel)
    changed = between(scores.reshape(*scores.shape[:4], -1, kernel.shape[3])).reshape(scores.shape)
    return _from_windows(_first_max(changed), kernel)


def _relu_with_bias(pooled: jax.Array, bias: jax.Array) -> jax.Array:
    # Adding a bias and ReLU are increasing, so they commute with the maximum; after it there is 4 times less to do.
    return nn.relu(pooled + bias.reshape(1, 1, 1, -1))


def _pool_by_xla(images: jax.Array, kernel: jax.Array) -> jax.Array:
    scores = xla_conv(images, kernel, stride=1, padding=kernel.shape[0] // 2)
    return lax.reduce_window(scores, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _by_cells(images: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    pooled = _first_max(_window_scores(images, kernel))
    return _from_windows(_relu_with_bias(pooled, jnp.tile(bias, pooled.shape[3] // len(bias))), kernel)


def _window_scores(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """All outputs of the convolution, [N, H / side, W / side, 4, windows F]: by cell, place in the window, window."""
    size, _, channels, features = kernel.shape
    fits = (size - 1) % 4 == 0 and images.shape[1] % 4 == 0 and images.shape[2] % 4 == 0
    side = 4 if channels == 1 and features < _VECTOR_SIZE and fits else 2
    scores = lax.dot_general(_patches(images, size, side), _patch_matrix(kernel, side), (((3,), (0,)), ((), ())))
    return scores.reshape(*scores.shape[:3], 4, scores.shape[3] // 4)


def _from_windows(pooled: jax.Array, kernel: jax.Array) -> jax.Array:
    """[N, H / side, W / side, windows F] -> [N, H / 2, W / 2, F]; a cell has as many windows each way."""
    return from_cells(pooled, math.isqrt(pooled.shape[3] // kernel.shape[3]))


def _patches(images: jax.Array, size: int, side: int) -> jax.Array:
    """The patch of each cell, [N, H / side, W / side, (size + side - 1)^2 C], by cell, pixel in cell, channel."""
    half, num_cells = size // 2, (size - 1) // side + 1
    # Zeros go around the cells where they fill whole ones: two layers of cells then meet without a copy between them.
    inner, outer = (0, half // side) if half % side == 0 else (half, 0)
    around = lambda width: ((0, 0), (width, width), (width, width), (0, 0))
    cells = jnp.pad(_to_cells(jnp.pad(images, around(inner)), side), around(outer))
    rows, columns = images.shape[1] // side, images.shape[2] // side
    shifts = [(i, j) for i in range(num_cells) for j in range(num_cells)]
    return jnp.concatenate([cells[:, i : i + rows, j : j + columns] for i, j in shifts], axis=-1)


def _to_cells(images: jax.Array, side: int) -> jax.Array:
    """[N, H, W, C] -> [N, H / side, W / side, side^2 C]: the pixels of each cell side by side."""
    batch, height, width, channels = images.shape
    cells = images.reshape(batch, height // side, side, width // side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(batch, height // side, width // side, side * side * channels)


def _patch_matrix(kernel: jax.Array, side: int) -> jax.Array:
    """The matrix [(size + side - 1)^2 C, side^2 F] from a patch to its outputs, by place in the window, then window."""
    size, _, channels, features = kernel.shape
    windows = [(i, j) for i in range(0, side, 2) for j in range(0, side, 2)]
    places = [(k + i, m + j) for k in range(2) for m in range(2) for i, j in windows]
    end = side - 1
    placed = [jnp.pad(kernel, ((i, end - i), (j, end - j), (0, 0), (0, 0))) for i, j in places]
    num_cells = (size - 1) // side + 1
    matrix = jnp.stack(placed, axis=3).reshape(num_cells, side, num_cells, side, channels, len(places) * features)
    return matrix.transpose(0, 2, 1, 3, 4, 5).reshape(-1, len(places) * features)


@jax.custom_jvp
def _first_max(scores: jax.Array) -> jax.Array:
    """Maximum over the axis of four, [N, h, w, 4, F] -> [N, h, w, F]; the gradient goes to the first of equals."""
    return scores.max(axis=3)


@_first_max.defjvp
def _first_max_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (scores,), (tangent,) = primals, tangents
    return _first_max(scores), (tangent * _is_first_max(scores).astype(scores.dtype)).sum(axis=3)


def _is_first_max(scores: jax.Array) -> jax.Array:
    """True at the first of the largest of four, bool like `scores`; `max` alone would share the gradient of equals."""
    if scores.shape[-1] < _VECTOR_SIZE:
        return jnp.argmax(scores, axis=3)[:, :, :, None] == jnp.arange(4).reshape(1, 1, 1, 4, 1)
    first, second, third, fourth = (scores[:, :, :, i] for i in range(4))
    top = jnp.maximum(first, second) >= jnp.maximum(third, fourth)
    left, below_left = first >= second, third >= fourth
    return jnp.stack([top & left, top & ~left, ~top & below_left, ~top & ~below_left], axis=3)


def pool_windows(
    images: jax.Array,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    kind: Literal["max", "sum"],
) -> jax.Array:
    """`lax.reduce_window` without dilation, along the axes one after the other; the gradient of equals as in it.

    Args:
        images: any array of floats.
        window, strides, padding: for each of its axes; padding has no part in a maximum and is 0 in a sum.
        kind: what is taken of a window.
    """
    fill, join = (-jnp.inf, _maximum) if kind == "max" else (0.0, jnp.add)
    pooled = lax.pad(images, jnp.asarray(fill, images.dtype), [(before, after, 0) for before, after in padding])
    for axis in reversed(range(images.ndim)):
        end = (pooled.shape[axis] - window[axis]) // strides[axis] * strides[axis] + 1
        shifted = [lax.slice_in_dim(pooled, i, i + end, strides[axis], axis) for i in range(window[axis])]
        pooled = functools.reduce(join, shifted)
    return pooled


@jax.jit  # so that it stays one call in a jaxpr, by whose program an export to ONNX knows it
def max_pool(images: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H // 2, W // 2, C]. An odd last row or column is not pooled, as in PyTorch."""
    top, bottom = _every_second(images, axis=1)
    return _maximum(_maximum(*_every_second(top, axis=2)), _maximum(*_every_second(bottom, axis=2)))


def _every_second(images: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """The even and the odd places of an axis, as many of each."""
    # Not [::2]: with a batch of any size, as in an exported file, that would be a gather.
    end = images.shape[axis] // 2 * 2
    return lax.slice_in_dim(images, 0, end, 2, axis), lax.slice_in_dim(images, 1, end, 2, axis)


def _maximum(first: jax.Array, second: jax.Array) -> jax.Array:
    """`jnp.maximum` but for the gradient of equals, which `jnp.maximum` would halve: here all of it goes to `first`."""
    return jnp.where((second > first) | jnp.isnan(second), second, first)
