"""ResNet-18 for small images, of any width."""

import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
from flax import linen as nn

from rap_jax.models.layers.convolution import Implementation
from rap_jax.models.layers.initializers import Initializer
from rap_jax.models.layers.linear import ConvNorm, Dense
from rap_jax.models.network import Network

_BLOCKS_PER_GROUP = 2
_GROUPS = ((4, 1), (8, 2), (16, 2), (32, 2))  # channels in units of w, stride of the first block


def _reads() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Reader -> producers: of a sum all that have added to it since the last change of its channels."""
    stream: tuple[str, ...] = ("conv1",)
    for group, (_, stride) in enumerate(_GROUPS, start=1):
        for number in range(_BLOCKS_PER_GROUP):
            block = f"group{group}_block{number}"
            yield f"{block}/conv1", stream
            yield f"{block}/conv2", (f"{block}/conv1",)
            if number == 0 and stride > 1:
                yield f"{block}/shortcut", stream
                stream = (f"{block}/shortcut",)
            stream = (*stream, f"{block}/conv2")
    yield "fc", stream


class BasicBlock(nn.Module):
    """relu(conv2(relu(conv1(x))) + shortcut(x)) with BatchNorm after each convolution, 3x3 kernels.

    The shortcut is a 1x1 convolution where the shape changes and nothing elsewhere. Only `conv1` and the shortcut have
    the stride. `conv1` has `hidden_features` outputs, the other two have `features`.
    """

    features: int
    hidden_features: int
    stride: int
    kernel_init: Initializer
    implementation: Implementation
    folded: bool

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, features], sizes rounded up."""
        conv = functools.partial(
            ConvNorm, kernel_init=self.kernel_init, implementation=self.implementation, folded=self.folded
        )
        first = conv(self.hidden_features, kernel_size=3, padding=1, stride=self.stride, name="conv1")
        hidden = nn.relu(first(images, train))
        hidden = conv(self.features, kernel_size=3, padding=1, name="conv2")(hidden, train)
        shortcut = images
        if images.shape != hidden.shape:
            shortcut = conv(self.features, kernel_size=1, stride=self.stride, name="shortcut")(images, train)
        return nn.relu(hidden + shortcut)


class ResNet18(Network):
    """ResNet-18 of width w: a 3x3 stem without pooling, four groups of two blocks, 4w, 8w, 16w, 32w channels, dense 10.

    Width 16 is the usual network of 64 to 512 channels. The parameters for w = 1, 2, 4, 8, 16 and colour images are
    44,622, 176,402, 701,466, 2,797,610 and 11,173,962.

    Reference: Ye et al., 2019, Table 1, https://arxiv.org/abs/1903.12561; He et al., 2016,
    https://arxiv.org/abs/1512.03385.
    """

    OUTPUT_LAYER: ClassVar[str] = "fc"
    DEFAULT_INITIALIZER: ClassVar[str] = "pytorch"
    READS: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(dict(_reads()))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """See `Network`."""
        common: dict[str, Any] = {
            "kernel_init": self.kernel_init,
            "implementation": self.implementation,
            "folded": self.folded,
        }
        stem = ConvNorm(self.num_outputs("conv1", 4 * self.width), kernel_size=3, padding=1, name="conv1", **common)
        hidden = nn.relu(stem(images, train))
        for group, (channels, stride) in enumerate(_GROUPS, start=1):
            for number in range(_BLOCKS_PER_GROUP):
                name = f"group{group}_block{number}"
                features = self.num_outputs(f"{name}/conv2", channels * self.width)
                inner = self.num_outputs(f"{name}/conv1", channels * self.width)
                block = BasicBlock(features, inner, stride if number == 0 else 1, name=name, **common)
                hidden = block(hidden, train)
        return Dense(self.num_classes, name=self.OUTPUT_LAYER)(hidden.mean((1, 2)))
