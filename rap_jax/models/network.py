"""What every network of `create_model` has in common."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import jax
from flax import linen as nn

from rap_jax.models.layers.convolution import Implementation
from rap_jax.models.layers.initializers import Initializer
from rap_jax.models.wiring import Wiring


class Network(nn.Module):
    """Base class of the networks: a subclass sets the class variables and defines the call.

    A network is usable by the rest of the package if its layers keep their parameters as `Conv`, `ConvNorm`, `Dense`
    and `BatchNorm` do: a kernel has its outputs last, and every vector beside it has one number per output.

    `READS` and `UNPADDED` name the layers whose outputs can be removed, see `Wiring`; a network whose wiring depends on
    its width defines `wiring` instead.
    """

    OUTPUT_LAYER: ClassVar[str]  # path of the layer that gives the logits, such as `fc`
    DEFAULT_INITIALIZER: ClassVar[str]  # name of the initialisation of convolution kernels that `default` stands for
    MIN_IMAGE_SIZE: ClassVar[int] = 1  # least height and width of an image
    # Path of a layer -> path of the layer whose outputs are its inputs, or of those that add up to them.
    READS: ClassVar[Mapping[str, str | tuple[str, ...]]] = MappingProxyType({})
    UNPADDED: ClassVar[tuple[str, ...]] = ()  # convolutions among the readers that see no zeros beyond the border

    width: int  # the paper's w, a factor of the number of channels
    num_classes: int  # number of logits
    kernel_init: Initializer  # of the convolution kernels
    implementation: Implementation = "auto"  # of the convolutions, see `conv2d` and `conv_relu_pool`
    features: tuple[tuple[str, int], ...] = ()  # (path, number of outputs) of layers that differ from the width
    folded: bool = False  # without the statistics of BatchNorm, part of its neighbours then; see `compaction.fold`

    def wiring(self) -> Wiring:
        """The producers and readers of channels."""
        reads = (
            (reader, names) if isinstance(names, tuple) else (reader, (names,)) for reader, names in self.READS.items()
        )
        return Wiring(tuple((reader, name) for reader, names in reads for name in names), unpadded=self.UNPADDED)

    def num_outputs(self, layer: str, default: int) -> int:
        """Outputs of the layer with that path: its number in `features`, or else `default`."""
        return dict(self.features).get(layer, default)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits [N, num_classes] of images [N, H, W, C]; `train` is for BatchNorm alone."""
        raise NotImplementedError
