"""What every network of `create_model` has in common."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import jax
from flax import linen as nn

from rap_jax.models.layers.implementation import Implementation
from rap_jax.models.layers.initializers import Initializer
from rap_jax.models.wiring import Wiring


class Network(nn.Module):
    """Base class of the networks: six attributes, five facts, and a call that a subclass defines.

    A network is usable by the rest of the package if its layers keep their parameters as `Conv`, `ConvNorm`, `Dense`
    and `BatchNorm` do: a kernel has its outputs last, and every vector beside it has one number per output.

    `READS` and `UNPADDED` name the layers whose outputs can be cut out of the network, as `compaction.wiring` has it; a
    network whose wiring depends on its width defines `wiring` instead.

    Attributes:
        OUTPUT_LAYER: path of the layer that gives the logits, such as `fc`.
        DEFAULT_INITIALIZER: name of the initialisation of convolution kernels that `default` stands for.
        MIN_IMAGE_SIZE: least height and width of an image.
        READS: path of a layer -> path of the layer whose outputs are its inputs, or of those that add up to them.
        UNPADDED: convolutions among the readers that see no zeros beyond the border of the image.
        width: the paper's w, a factor of the number of channels.
        num_classes: number of logits.
        kernel_init: how the convolution kernels start.
        implementation: how convolutions are computed; see `conv2d` and `conv_relu_pool`.
        features: (path, number of outputs) of the layers that shall have another number than the width says.
        folded: without the statistics of BatchNorm, which are in its neighbours then; see `compaction.fold`.
    """

    OUTPUT_LAYER: ClassVar[str]
    DEFAULT_INITIALIZER: ClassVar[str]
    MIN_IMAGE_SIZE: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, str | tuple[str, ...]]] = MappingProxyType({})
    UNPADDED: ClassVar[tuple[str, ...]] = ()

    width: int
    num_classes: int
    kernel_init: Initializer
    implementation: Implementation = "auto"
    features: tuple[tuple[str, int], ...] = ()
    folded: bool = False

    def wiring(self) -> Wiring:
        """Who reads whom."""
        reads = (
            (reader, names) if isinstance(names, tuple) else (reader, (names,)) for reader, names in self.READS.items()
        )
        return Wiring(tuple((reader, name) for reader, names in reads for name in names), unpadded=self.UNPADDED)

    def num_outputs(self, layer: str, default: int) -> int:
        """Outputs of the layer with that path: what `features` says, or else `default`."""
        return dict(self.features).get(layer, default)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits [N, num_classes] of images [N, H, W, C]; `train` is for BatchNorm alone."""
        raise NotImplementedError
