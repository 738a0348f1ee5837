"""Layers with a kernel: convolution and dense, each alone and with BatchNorm.

    layer = ConvNorm(features=8, kernel_size=3, kernel_init=init, padding=1)
    params        {"kernel": [3, 3, C, 8], "scale": [8], "shift": [8]}, and "bias": [8] if it is asked for
    batch_stats   {"mean": [8], "var": [8]}
    folded        {"kernel": [3, 3, C, 8], "bias": [8]} and no statistics

`DenseNorm(features=8)` is the same with kernels [in, 8].

All that belongs to a filter lies beside its kernel, so a filter is removed with everything that belongs to it.

Two implementations of a convolution compute the same function and the same gradients:

  xla    for GPU and TPU, and the definition.
  cpu    several times as fast on a CPU. Reverse mode only: `jax.jvp` needs `xla`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from rap_jax.config import require
from rap_jax.models.layers.batch_norm import BatchNorm
from rap_jax.models.layers.convolution import Implementation, cpu_conv, use_cpu_form, xla_conv
from rap_jax.models.layers.initializers import Initializer, bias_initializer, kernel_initializer


class Conv(nn.Module):
    """Convolution with a square kernel and zero padding. Parameters: kernel [k, k, in, out] and, if any, bias [out]."""

    features: int  # number of output channels
    kernel_size: int  # height and width of the kernel
    kernel_init: Initializer  # of the kernel; the bias is drawn from PyTorch's uniform(+-1/sqrt(fan_in))
    stride: int = 1  # pixels from one output to the next
    padding: int = 0  # zeros on each side of the image
    use_bias: bool = False
    implementation: Implementation = "auto"  # see `conv2d`

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


class ConvNorm(nn.Module):
    """`Conv`, then `BatchNorm`; both keep their parameters in this layer."""

    features: int
    kernel_size: int
    kernel_init: Initializer
    stride: int = 1
    padding: int = 0
    use_bias: bool = False
    implementation: Implementation = "auto"
    folded: bool = False  # a convolution with bias, which the norm has been made part of

    def setup(self) -> None:
        self.conv = Conv(
            features=self.features,
            kernel_size=self.kernel_size,
            kernel_init=self.kernel_init,
            stride=self.stride,
            padding=self.padding,
            use_bias=self.use_bias or self.folded,
            implementation=self.implementation,
        )
        nn.share_scope(self, self.conv)
        if not self.folded:
            self.norm = BatchNorm(self.features)
            nn.share_scope(self, self.norm)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H', W', features]; see `BatchNorm` for `train`."""
        if self.folded:
            return self.conv(images)
        if train:
            return self.norm(self.conv(images), train)
        # In evaluation mode the norm is a factor and an offset per filter: one multiplication of the small kernel
        # instead of one of every output, and none in the gradient of an attack.
        return self.conv(images, self.norm.running())


class Dense(nn.Module):
    """`inputs @ kernel + bias`, [N, in] -> [N, features], with PyTorch's uniform(+-1/sqrt(in)) start of both.

    `nn.Dense` cannot do it: a bias initializer of Linen does not learn how many inputs the layer has.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: jax.Array, norm: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        """[N, in] -> [N, features]; with a norm, a factor and an offset [features], scaled and shifted."""
        fan_in = inputs.shape[-1]
        kernel = self.param("kernel", kernel_initializer("pytorch"), (fan_in, self.features), jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", bias_initializer(fan_in), (self.features,), jnp.float32)
        if norm is not None:
            factor, offset = norm
            kernel = kernel * factor.reshape(1, -1)
            bias = offset if bias is None else bias * factor + offset
        outputs = jnp.dot(inputs, kernel)
        return outputs if bias is None else outputs + bias.reshape(1, -1)


class DenseNorm(nn.Module):
    """`Dense` without bias, then `BatchNorm`; both keep their parameters in this layer."""

    features: int
    folded: bool = False  # a dense layer with bias, which the norm has been made part of

    def setup(self) -> None:
        self.dense = Dense(self.features, use_bias=self.folded)
        nn.share_scope(self, self.dense)
        if not self.folded:
            self.norm = BatchNorm(self.features)
            nn.share_scope(self, self.norm)

    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """[N, in] -> [N, features]; see `BatchNorm` for `train`."""
        if self.folded:
            return self.dense(inputs)
        if train:
            return self.norm(self.dense(inputs), train)
        return self.dense(inputs, self.norm.running())
