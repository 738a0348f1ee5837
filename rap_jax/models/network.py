"""What every network of `create_model` has in common."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import jax
from flax import linen as nn

from rap_jax.models.implementation import Implementation
from rap_jax.models.initializers import Initializer


class Network(nn.Module):
    """Base class of the networks: five attributes, four facts, and a call that a subclass defines.

    A network is usable by the rest of the package if its layers keep their parameters as `Conv`, `ConvNorm`, `Dense`
    and `BatchNorm` do: a kernel has its outputs last, and every vector beside it has one number per output.

    `READS` names the layers whose outputs can be cut out of the network. Each output of such a layer passes a ReLU, and
    pooling, a mean or flattening to [height, width, channel] at most, on its way to the layers that `READS` names as
    its readers, and reaches no other: what adds up in a residual network has no place there.

    Attributes:
        OUTPUT_LAYER: path of the layer that gives the logits, such as `fc`.
        DEFAULT_INITIALIZER: name of the initialisation of convolution kernels that `default` stands for.
        MIN_IMAGE_SIZE: least height and width of an image.
        READS: path of a layer -> path of the layer whose outputs are its inputs.
        width: the paper's w, a factor of the number of channels.
        num_classes: number of logits.
        kernel_init: how the convolution kernels start.
        implementation: how convolutions are computed; see `conv2d` and `conv_relu_pool`.
        features: (path, number of outputs) of the layers that shall have another number than the width says.
    """

    OUTPUT_LAYER: ClassVar[str]
    DEFAULT_INITIALIZER: ClassVar[str]
    MIN_IMAGE_SIZE: ClassVar[int] = 1
    READS: ClassVar[Mapping[str, str]] = MappingProxyType({})

    width: int
    num_classes: int
    kernel_init: Initializer
    implementation: Implementation = "auto"
    features: tuple[tuple[str, int], ...] = ()

    def num_outputs(self, layer: str, default: int) -> int:
        """Outputs of the layer with that path: what `features` says, or else `default`."""
        return dict(self.features).get(layer, default)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits [N, num_classes] of images [N, H, W, C]; `train` is for BatchNorm alone."""
        raise NotImplementedError
