"""A convolution and the batch normalisation that follows it, as one layer.

    layer = ConvNorm(features=8, kernel_size=3, kernel_init=init, padding=1)
    params        {"kernel": [3, 3, C, 8], "scale": [8], "shift": [8]}, and "bias": [8] if it is asked for
    batch_stats   {"mean": [8], "var": [8]}
    folded        {"kernel": [3, 3, C, 8], "bias": [8]} and no statistics

All that belongs to a filter lies beside its kernel, so whoever removes the filter finds the rest of it there."""

import jax
from flax import linen as nn

from rap_jax.models.layers.batch_norm import BatchNorm
from rap_jax.models.layers.conv import Conv
from rap_jax.models.layers.implementation import Implementation
from rap_jax.models.layers.initializers import Initializer


class ConvNorm(nn.Module):
    """`Conv`, then `BatchNorm`; both keep their parameters in this layer.

    Attributes: those of `Conv`, and folded: a convolution with bias, which the norm has been made part of.
    """

    features: int
    kernel_size: int
    kernel_init: Initializer
    stride: int = 1
    padding: int = 0
    use_bias: bool = False
    implementation: Implementation = "auto"
    folded: bool = False

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
