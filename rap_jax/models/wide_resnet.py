"""The wide residual network WRN-28-k, with k = w."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import jax
from flax import linen as nn

from rap_jax.models.batch_norm import BatchNorm
from rap_jax.models.conv import Conv
from rap_jax.models.conv_norm import ConvNorm
from rap_jax.models.dense import Dense
from rap_jax.models.implementation import Implementation
from rap_jax.models.initializers import Initializer
from rap_jax.models.network import Network

_BLOCKS_PER_GROUP = 4  # 28 layers = 4 + 3 groups x 4 blocks x 2 convolutions
_GROUPS = ((16, 1), (32, 2), (64, 2))  # channels in units of k, stride of the first block
_BLOCKS = tuple(f"group{group}_block{number}" for group in (1, 2, 3) for number in range(_BLOCKS_PER_GROUP))


class PreActivationBlock(nn.Module):
    """conv2(relu(conv1(relu(norm1(x))))) + shortcut, with a BatchNorm between the convolutions, 3x3 kernels.

    The shortcut is x where the number of channels stays, and a 1x1 convolution of relu(norm1(x)) where it changes.
    `conv1` has `hidden_features` outputs, the other two have `features`.
    """

    features: int
    hidden_features: int
    stride: int
    kernel_init: Initializer
    implementation: Implementation

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, features], sizes rounded up."""
        conv_norm = functools.partial(ConvNorm, kernel_init=self.kernel_init, implementation=self.implementation)
        conv = functools.partial(Conv, self.features, kernel_init=self.kernel_init, implementation=self.implementation)
        active = nn.relu(BatchNorm(images.shape[-1], name="norm1")(images, train))
        first = conv_norm(self.hidden_features, kernel_size=3, padding=1, stride=self.stride, name="conv1")
        hidden = first(active, train)
        hidden = conv(kernel_size=3, padding=1, name="conv2")(nn.relu(hidden))
        shortcut = images
        if images.shape[-1] != self.features:
            shortcut = conv(kernel_size=1, stride=self.stride, name="shortcut")(active)
        return hidden + shortcut


class WideResNet28(Network):
    """WRN-28-k without dropout: a stem of 16 channels, three groups of four blocks, 16k, 32k, 64k channels, dense 10.

    `width` is k. WRN-28-10 has 36,479,194 parameters for colour images and 10 classes.

    Reference: Zagoruyko and Komodakis, 2016, https://arxiv.org/abs/1605.07146.
    """

    OUTPUT_LAYER: ClassVar[str] = "fc"
    DEFAULT_INITIALIZER: ClassVar[str] = "kaiming_normal"
    READS: ClassVar[Mapping[str, str]] = MappingProxyType({f"{block}/conv2": f"{block}/conv1" for block in _BLOCKS})

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """See `Network`."""
        block = functools.partial(PreActivationBlock, kernel_init=self.kernel_init, implementation=self.implementation)
        conv = functools.partial(Conv, kernel_init=self.kernel_init, implementation=self.implementation)
        hidden = conv(16, kernel_size=3, padding=1, name="conv1")(images)
        for group, (channels, stride) in enumerate(_GROUPS, start=1):
            for number in range(_BLOCKS_PER_GROUP):
                name = f"group{group}_block{number}"
                features = channels * self.width
                inner = self.num_outputs(f"{name}/conv1", features)
                hidden = block(features, inner, stride if number == 0 else 1, name=name)(hidden, train)
        hidden = nn.relu(BatchNorm(hidden.shape[-1], name="norm")(hidden, train))
        return Dense(self.num_classes, name=self.OUTPUT_LAYER)(hidden.mean((1, 2)))
