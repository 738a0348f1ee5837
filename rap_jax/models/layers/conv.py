"""Convolution with a square kernel, as layers of a network have it.

    layer = Conv(features=8, kernel_size=3, kernel_init=init, padding=1)    # {"kernel": [3, 3, C, 8]}
    outputs = conv2d(images, kernel, stride=2, padding=1)                   # [N, H, W, C] -> [N, H', W', 8]

Two implementations compute the same function and the same gradients:

  xla    right for GPU and TPU, and the definition.
  cpu    several times as fast on a CPU. Reverse mode only: `jax.jvp` needs `xla`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from rap_jax.config import require
from rap_jax.models.layers.convolution import cpu_conv, xla_conv
from rap_jax.models.layers.implementation import Implementation, use_cpu_form
from rap_jax.models.layers.initializers import Initializer, bias_initializer


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
    def __call__(self, images: jax.Array, norm: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        """[N, H, W, C] -> [N, H', W', features]; with a norm, a factor and an offset [features], scaled and shifted."""
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", bias_initializer(shape[0] * shape[1] * shape[2]), (self.features,), jnp.float32)
        if norm is not None:
            factor, offset = norm
            kernel = kernel * factor.reshape(1, 1, 1, -1)
            bias = offset if bias is None else bias * factor + offset
        outputs = conv2d(images, kernel, stride=self.stride, padding=self.padding, implementation=self.implementation)
        return outputs if bias is None else outputs + bias.reshape(1, 1, 1, -1)


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
    conv = cpu_conv if use_cpu_form(implementation) else xla_conv
    return conv(images, kernel, stride, padding)
