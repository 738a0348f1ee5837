"""The convolution of `conv2d`: as XLA has it, and in a form that XLA:CPU computes fast, in an attack loop as well.

    outputs = xla_conv(images, kernel, stride, padding)     # the definition, and the form for GPU and TPU
    outputs = cpu_conv(images, kernel, stride, padding)     # [N, H, W, C] -> [N, H', W', F]; reverse mode only

What is slow there, and what is done about it (LeNet and ResNet-18 of the paper on 2 cores; `benchmarks/conv.py`):

  few features       XLA:CPU gives each output feature a place in a vector register, and with 4 features leaves most
                     of it empty. So m neighbouring outputs of a row are computed as m F features of one convolution
                     with a wider kernel, that takes m strides at a time. The zeros in the wider kernel cost less than
                     empty registers: 4 channels at 32 x 32 take 1.4 ms instead of 7.7, 16 channels 6.3 instead of 9.2.
  many features      A 3x3 or 5x5 kernel takes less than half of the multiplications, see `winograd`: 31 ms instead of
                     48 (128 channels).
  3 channels         are filled up with zeros to 4 for the same reason: 1.7 ms instead of 4.3.
  image gradient     In a loop XLA computes its own form of it without its fast convolution kernels. Here it is a
                     forward convolution, see below, ten times as fast for an attack on a ResNet-18 of width 4.
  kernel gradient    runs over the whole batch for every entry of the kernel, and a batch does not fit into the cache.
                     Summed over parts of the batch that do, it takes 6 ms instead of 23 (16 channels).

The image gradient. With stride s and padding p, output t of a row is the sum of kernel[i] pixel[s t + i - p] over i, so
the gradient at pixel s m + r is the sum over t of kernel[s (m - t) + r + p] gradient[t]. For one r this is a
convolution of the gradients with every s-th entry of the kernel, reversed; the s s pairs of r, for rows and columns,
are computed side by side as channels of one convolution, whose outputs are then laid out as s x s pixels. With s = 1 it
is the well-known convolution with the flipped kernel, in and out exchanged.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from rap_jax.config import require
from rap_jax.models.layers.winograd import Sides, has_winograd_form, winograd_conv

Implementation = Literal["auto", "cpu", "xla"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("auto", "cpu", "xla")


def use_cpu_form(implementation: Implementation) -> bool:
    """Whether a layer takes its form for the CPU; `auto` depends on JAX's default backend when the layer is traced.

    Raises:
        ValueError: for an unknown implementation; the message lists the known ones.
    """
    require(implementation in IMPLEMENTATIONS, "implementation", implementation, f"one of {', '.join(IMPLEMENTATIONS)}")
    return implementation == "cpu" or (implementation == "auto" and jax.default_backend() == "cpu")


DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def xla_conv(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """[N, H, W, C] and [k, k, C, F] -> [N, H', W', F]: cross-correlation with zeros on each of the four sides."""
    sides = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(images, kernel, (stride, stride), sides, dimension_numbers=DIMENSIONS)


# Features of a convolution from which on XLA:CPU is fast by itself.
_ENOUGH_FEATURES = 32
_ENOUGH_CHANNELS = 4
# Numbers in a part of the batch when kernel gradients are summed.
_PART_SIZE = 2**18


def _forward(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return _correlate(images, kernel, stride, ((padding, padding), (padding, padding)))


cpu_conv = jax.custom_vjp(_forward, nondiff_argnums=(2, 3))


def _backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = residuals
    image_gradient = _image_gradient(gradient, kernel, images.shape, stride, padding)
    return image_gradient, _kernel_gradient(images, gradient, kernel, stride, padding)


cpu_conv.defvjp(lambda images, kernel, *sides: (_forward(images, kernel, *sides), (images, kernel)), _backward)


def _correlate(images: jax.Array, kernel: jax.Array, stride: int, sides: Sides) -> jax.Array:
    """The convolution with any zeros around, in the form that is quickest for its shape."""
    size, _, channels, features = kernel.shape
    height, width = (images.shape[axis] + sum(sides[axis - 1]) + 1 - size for axis in (1, 2))
    enough = min(channels, features) >= _ENOUGH_FEATURES
    if enough and stride == 1 and has_winograd_form(size, height, width):
        return winograd_conv(images, kernel, sides)
    return _packed(images, kernel, stride, sides)


def _packed(images: jax.Array, kernel: jax.Array, stride: int, sides: Sides) -> jax.Array:
    """The convolution, with several neighbouring outputs of a row computed as features of one."""
    images, kernel = _fill_up_channels(images, kernel)
    size, _, channels, features = kernel.shape
    width = (images.shape[2] + sum(sides[1]) - size) // stride + 1
    count = _num_packed(width, features)
    reach = (count - 1) * stride
    shifted = [jnp.pad(kernel, ((0, 0), (i * stride, reach - i * stride), (0, 0), (0, 0))) for i in range(count)]
    wide = jnp.stack(shifted, axis=3).reshape(size, size + reach, channels, count * features)
    # Without the barrier XLA folds how the kernel was made into the convolution, and is back at its slow form.
    outputs = lax.conv_general_dilated(
        images, lax.optimization_barrier(wide), (stride, stride * count), sides, dimension_numbers=DIMENSIONS
    )
    return outputs.reshape(*outputs.shape[:2], width, features)


def _fill_up_channels(images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Zeros as channels, up to a multiple of four, on both sides of the product."""
    missing = -kernel.shape[2] % _ENOUGH_CHANNELS
    if not missing:
        return images, kernel
    images = jnp.pad(images, ((0, 0), (0, 0), (0, 0), (0, missing)))
    return lax.optimization_barrier(images), jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))


def _num_packed(width: int, features: int) -> int:
    """The largest number of outputs that divides a row and whose features are not more than enough; 1 if none is."""
    most = max(1, min(width, _ENOUGH_FEATURES // features))
    return max(count for count in range(1, most + 1) if width % count == 0)


def _kernel_gradient(images: jax.Array, gradient: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Gradient with respect to the kernel, summed over parts of the batch."""
    num_parts = 1
    while images.size > num_parts * _PART_SIZE and len(images) % (2 * num_parts) == 0:
        num_parts *= 2
    total = jnp.zeros_like(kernel)
    for part, pulled in zip(jnp.split(images, num_parts), jnp.split(gradient, num_parts), strict=True):
        pull_back = jax.linear_transpose(lambda kernel, part=part: xla_conv(part, kernel, stride, padding), kernel)
        total += pull_back(pulled)[0]
    return total


def _image_gradient(
    gradient: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    """Gradient with respect to images of `shape`, from that of the outputs, [N, H', W', F]."""
    # Zeros before the kernel until its entry `padding` starts a new group of `stride` entries.
    front = -padding % stride
    phases = _split_phases(kernel, front, stride)
    taps = phases.shape[0]
    before = taps - 1 - (padding + front) // stride
    # Zeros after the gradients, so that there is a cell for every pixel; fewer than none cuts gradients off.
    after = [-(-shape[axis] // stride) - gradient.shape[axis] - before + taps - 1 for axis in (1, 2)]
    cells = _correlate(gradient, phases, 1, ((before, after[0]), (before, after[1])))
    return from_cells(cells, stride)[:, : shape[1], : shape[2]]


def _split_phases(kernel: jax.Array, front: int, stride: int) -> jax.Array:
    """[k, k, C, F] -> [u, u, F, s s C]: entries s u + r of the kernel as entry u of kernel r, reversed in u."""
    size, _, channels, features = kernel.shape
    taps = -(-(size + front) // stride)
    ends = (front, taps * stride - size - front)
    padded = jnp.pad(kernel, (ends, ends, (0, 0), (0, 0)))
    phases = padded.reshape(taps, stride, taps, stride, channels, features)[::-1, :, ::-1]
    return phases.transpose(0, 2, 5, 1, 3, 4).reshape(taps, taps, features, stride * stride * channels)


def from_cells(cells: jax.Array, side: int) -> jax.Array:
    """[N, h, w, s s C] -> [N, s h, s w, C]: the channels of a cell become its s x s pixels."""
    batch, rows, columns, channels = cells.shape
    channels //= side * side
    pixels = cells.reshape(batch, rows, columns, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(batch, side * rows, side * columns, channels)
