"""VGG-16 with BatchNorm for small images, of any width."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import jax
from flax import linen as nn

from rap_jax.models.layers.linear import ConvNorm, Dense
from rap_jax.models.layers.pool import max_pool
from rap_jax.models.network import Network

# Channels of the convolutions between two poolings, in units of w.
_GROUPS = ((4, 4), (8, 8), (16, 16, 16), (32, 32, 32), (32, 32, 32))
_LAYERS = (*(f"conv{number}" for number in range(1, 14)), "fc")


class Vgg16(Network):
    """VGG-16 of width w: 13 convolutions 3x3 of 4w to 32w channels with bias, BatchNorm and ReLU, 5 poolings, dense 10.

    Width 16 is the usual network of 64 to 512 channels with one dense layer; what is left of the image after the
    fifth pooling is averaged. The parameters for w = 1, 2, 4, 8, 16 and colour images are 58,686, 232,274, 924,186,
    3,686,954 and 14,728,266.

    Reference: Ye et al., 2019, Table 1, https://arxiv.org/abs/1903.12561; Simonyan and Zisserman, 2015.
    """

    OUTPUT_LAYER: ClassVar[str] = "fc"
    DEFAULT_INITIALIZER: ClassVar[str] = "pytorch"
    MIN_IMAGE_SIZE: ClassVar[int] = 2 ** len(_GROUPS)
    READS: ClassVar[Mapping[str, str]] = MappingProxyType(dict(zip(_LAYERS[1:], _LAYERS[:-1], strict=True)))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """See `Network`."""
        conv = functools.partial(
            ConvNorm,
            kernel_size=3,
            padding=1,
            use_bias=True,
            kernel_init=self.kernel_init,
            implementation=self.implementation,
            folded=self.folded,
        )
        hidden, names = images, iter(_LAYERS)
        for group in _GROUPS:
            for channels in group:
                name = next(names)
                hidden = nn.relu(conv(self.num_outputs(name, channels * self.width), name=name)(hidden, train))
            hidden = max_pool(hidden)
        return Dense(self.num_classes, name=self.OUTPUT_LAYER)(hidden.mean((1, 2)))
