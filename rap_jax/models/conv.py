"""Convolution whose gradient with respect to the images stays fast inside an attack loop.

    layer = Conv(features=8, kernel_size=3, kernel_init=init, padding=1)    # {"kernel": [3, 3, C, 8]}
    outputs = conv2d(images, kernel, stride=2, padding=1)                   # [N, H, W, C] -> [N, H', W', 8]

Two implementations compute the same function and the same gradients:

  xla    `lax.conv_general_dilated` with its own derivative: right for GPU and TPU, and the definition.
  cpu    the same forward pass; the gradient with respect to the images is written as a forward convolution. In a loop
         XLA:CPU computes its own form of that gradient without its fast convolution kernels, and without them alone
         an attack step of a ResNet-18 of width 4 takes ten times as long; `benchmarks/conv.py` measures it.
         Reverse mode only: `jax.jvp` needs `xla`.

How `cpu` works. With stride s and padding p, output t of a row is the sum of kernel[i] pixel[s t + i - p] over i, so
the gradient at pixel s m + r is the sum over t of kernel[s (m - t) + r + p] gradient[t]. For one r this is a
convolution of the gradients with every s-th entry of the kernel, reversed; the s s pairs of r, for rows and columns,
are computed side by side as channels of one convolution, whose outputs are then laid out as s x s pixels. With s = 1 it
is the well-known convolution with the flipped kernel, in and out exchanged.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from rap_jax.config import require
from rap_jax.models.implementation import Implementation, use_cpu_form
from rap_jax.models.initializers import Initializer, bias_initializer

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Conv(nn.Module):
    """Convolution with a square kernel and zero padding. Parameters: kernel [k, k, in, out] and, if any, bias [out].

    Attributes:
        features: number of output channels.
        kernel_size: height and width of the kernel.
        kernel_init: how the kernel starts; the bias is PyTorch's uniform(+-1/sqrt(fan_in)).
        stride: pixels from one output to the next.
        padding: zeros on each side of the image.
        use_bias: whether there is a bias.
        implementation: see `conv2d`.
    """

    features: int
    kernel_size: int
    kernel_init: Initializer
    stride: int = 1
    padding: int = 0
    use_bias: bool = False
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        outputs = conv2d(images, kernel, stride=self.stride, padding=self.padding, implementation=self.implementation)
        if not self.use_bias:
            return outputs
        bias = self.param("bias", bias_initializer(shape[0] * shape[1] * shape[2]), (self.features,))
        return outputs + bias.reshape(1, 1, 1, -1)


def conv2d(
    images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, implementation: Implementation = "auto"
) -> jax.Array:
    """Cross-correlation, as convolution layers have it, without bias.

    Args:
        images: [N, H, W, C].
        kernel: [k, k, C, F].
        stride: pixels from one output to the next, both ways.
        padding: zeros on each of the four sides.
        implementation: `cpu` or `xla`, see above; `auto` is `cpu` if JAX's default backend is the CPU when the
            function is traced, and `xla` otherwise.

    Returns:
        [N, (H + 2 padding - k) // stride + 1, (W + 2 padding - k) // stride + 1, F].

    Raises:
        ValueError: for an oblong kernel, a kernel larger than the padded image, or an unknown implementation.
    """
    size = kernel.shape[0]
    require(kernel.shape[1] == size, "kernel size", kernel.shape[:2], "two equal numbers")
    fits = min(images.shape[1:3]) + 2 * padding >= size
    require(fits, "image size", images.shape[1:3], f"{size - 2 * padding} pixels or more each way for this kernel")
    conv = _conv_for_cpu if use_cpu_form(implementation) else _conv
    return conv(images, kernel, stride, padding)


def _conv(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    sides = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(images, kernel, (stride, stride), sides, dimension_numbers=_DIMENSIONS)


_conv_for_cpu = jax.custom_vjp(_conv, nondiff_argnums=(2, 3))


def _conv_forward(
    images: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(images, kernel, stride, padding), (images, kernel)


def _conv_backward(
    stride: int, padding: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    images, kernel = residuals
    _, pull_to_kernel = jax.vjp(lambda kernel: _conv(images, kernel, stride, padding), kernel)
    return _image_gradient(gradient, kernel, images.shape, stride, padding), pull_to_kernel(gradient)[0]


_conv_for_cpu.defvjp(_conv_forward, _conv_backward)


def _image_gradient(
    gradient: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    """The gradient with respect to images of `shape`, from that of the outputs, [N, H', W', F]."""
    # Zeros before the kernel until its entry `padding` starts a new group of `stride` entries.
    front = -padding % stride
    phases = _split_phases(kernel, front, stride)
    taps = phases.shape[0]
    before = taps - 1 - (padding + front) // stride
    sides = []
    for size, num_outputs in zip(shape[1:3], gradient.shape[1:3], strict=True):
        num_cells = -(-size // stride)
        sides.append((before, num_cells - num_outputs - before + taps - 1))
    # Without the barrier XLA folds the flipped kernel into the convolution and is back at its slow form.
    phases = lax.optimization_barrier(phases)
    cells = lax.conv_general_dilated(gradient, phases, (1, 1), sides, dimension_numbers=_DIMENSIONS)
    return _from_cells(cells, stride)[:, : shape[1], : shape[2]]


def _split_phases(kernel: jax.Array, front: int, stride: int) -> jax.Array:
    """[k, k, C, F] -> [u, u, F, s s C]: entries s u + r of the kernel as entry u of kernel r, reversed in u."""
    size, _, channels, features = kernel.shape
    taps = -(-(size + front) // stride)
    ends = (front, taps * stride - size - front)
    padded = jnp.pad(kernel, (ends, ends, (0, 0), (0, 0)))
    phases = padded.reshape(taps, stride, taps, stride, channels, features)[::-1, :, ::-1]
    return phases.transpose(0, 2, 5, 1, 3, 4).reshape(taps, taps, features, stride * stride * channels)


def _from_cells(cells: jax.Array, stride: int) -> jax.Array:
    """[N, h, w, s s C] -> [N, s h, s w, C]: the channels of a cell become its s x s pixels."""
    batch, height, width, _ = cells.shape
    pixels = cells.reshape(batch, height, width, stride, stride, -1).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(batch, stride * height, stride * width, -1)
