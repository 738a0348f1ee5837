"""The wide residual network WRN-28-k, with k = w."""

import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
from flax import linen as nn

from rap_jax.models.layers.batch_norm import BatchNorm
from rap_jax.models.layers.convolution import Implementation
from rap_jax.models.layers.initializers import Initializer
from rap_jax.models.layers.linear import Conv, ConvNorm, Dense
from rap_jax.models.network import Network
from rap_jax.models.wiring import Wiring

_STEM = 16  # channels of the first convolution, whatever the width
_BLOCKS_PER_GROUP = 4  # 28 layers = 4 + 3 groups x 4 blocks x 2 convolutions
_GROUPS = ((16, 1), (32, 2), (64, 2))  # channels in units of k, stride of the first block
_BLOCKS = tuple(f"group{group}_block{number}" for group in (1, 2, 3) for number in range(_BLOCKS_PER_GROUP))


def _reads(with_shortcut: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Reader -> producers: of a sum all that have added to it since the last change of its channels."""
    stream: tuple[str, ...] = ("conv1",)
    for block in _BLOCKS:
        yield f"{block}/norm1", stream
        yield f"{block}/conv1", (f"{block}/norm1",)
        yield f"{block}/conv2", (f"{block}/conv1",)
        if block in with_shortcut:
            yield f"{block}/shortcut", (f"{block}/norm1",)
            stream = (f"{block}/shortcut",)
        stream = (*stream, f"{block}/conv2")
    yield "norm", stream
    yield "fc", ("norm",)


class PreActivationBlock(nn.Module):
    """conv2(relu(conv1(relu(norm1(x))))) + shortcut, with a BatchNorm between the convolutions, 3x3 kernels.

    The shortcut is x, or a 1x1 convolution of relu(norm1(x)) where the number of channels changes.
    `conv1` has `hidden_features` outputs, the other two have `features`.
    """

    features: int
    hidden_features: int
    stride: int
    has_shortcut: bool
    kernel_init: Initializer
    implementation: Implementation
    folded: bool

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / stride, W / stride, features], sizes rounded up."""
        common: dict[str, Any] = {"kernel_init": self.kernel_init, "implementation": self.implementation}
        conv_norm = functools.partial(ConvNorm, self.hidden_features, folded=self.folded, **common)
        conv = functools.partial(Conv, self.features, **common)
        active = nn.relu(BatchNorm(images.shape[-1], folded=self.folded, name="norm1")(images, train))
        hidden = conv_norm(kernel_size=3, padding=1, stride=self.stride, name="conv1")(active, train)
        hidden = conv(kernel_size=3, padding=1, name="conv2")(nn.relu(hidden))
        shortcut = images
        if self.has_shortcut:
            shortcut = conv(kernel_size=1, stride=self.stride, name="shortcut")(active)
        return hidden + shortcut


class WideResNet28(Network):
    """WRN-28-k without dropout: a stem of 16 channels, three groups of four blocks, 16k, 32k, 64k channels, dense 10.

    `width` is k. WRN-28-10 has 36,479,194 parameters for colour images and 10 classes.

    Reference: Zagoruyko and Komodakis, 2016, https://arxiv.org/abs/1605.07146.
    """

    OUTPUT_LAYER: ClassVar[str] = "fc"
    DEFAULT_INITIALIZER: ClassVar[str] = "kaiming_normal"

    def wiring(self) -> Wiring:
        """See `Network`."""
        reads = ((reader, one) for reader, producers in _reads(self._with_shortcut()) for one in producers)
        return Wiring(tuple(reads), norms=(*(f"{block}/norm1" for block in _BLOCKS), "norm"))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """See `Network`."""
        common: dict[str, Any] = {"kernel_init": self.kernel_init, "implementation": self.implementation}
        features = self.num_outputs("conv1", _STEM)
        hidden = Conv(features, kernel_size=3, padding=1, name="conv1", **common)(images)
        for group, (channels, stride) in enumerate(_GROUPS, start=1):
            for number in range(_BLOCKS_PER_GROUP):
                name = f"group{group}_block{number}"
                block = PreActivationBlock(
                    features=self.num_outputs(f"{name}/conv2", channels * self.width),
                    hidden_features=self.num_outputs(f"{name}/conv1", channels * self.width),
                    stride=stride if number == 0 else 1,
                    has_shortcut=name in self._with_shortcut(),
                    folded=self.folded,
                    name=name,
                    **common,
                )
                hidden = block(hidden, train)
        hidden = nn.relu(BatchNorm(hidden.shape[-1], folded=self.folded, name="norm")(hidden, train))
        return Dense(self.num_classes, name=self.OUTPUT_LAYER)(hidden.mean((1, 2)))

    def _with_shortcut(self) -> tuple[str, ...]:
        """Blocks whose number of channels changes, before anything is removed."""
        before = (_STEM, *(channels * self.width for channels, _ in _GROUPS))
        return tuple(f"group{group}_block0" for group in (1, 2, 3) if before[group - 1] != before[group])
