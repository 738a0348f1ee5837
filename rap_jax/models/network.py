"""What every network of `create_model` has in common."""

from typing import ClassVar

import jax
from flax import linen as nn

from rap_jax.models.implementation import Implementation
from rap_jax.models.initializers import Initializer


class Network(nn.Module):
    """Base class of the networks: four attributes, three facts, and a call that a subclass defines.

    A network is usable by the rest of the package if its layers keep their parameters as `Conv`, `ConvNorm`, `Dense`
    and `BatchNorm` do: a kernel has its outputs last, and every vector beside it has one number per output.

    Attributes:
        OUTPUT_LAYER: path of the layer that gives the logits, such as `fc`.
        DEFAULT_INITIALIZER: name of the initialisation of convolution kernels that `default` stands for.
        MIN_IMAGE_SIZE: least height and width of an image.
        width: the paper's w, a factor of the number of channels.
        num_classes: number of logits.
        kernel_init: how the convolution kernels start.
        implementation: how convolutions are computed; see `conv2d` and `conv_relu_pool`.
    """

    OUTPUT_LAYER: ClassVar[str]
    DEFAULT_INITIALIZER: ClassVar[str]
    MIN_IMAGE_SIZE: ClassVar[int] = 1

    width: int
    num_classes: int
    kernel_init: Initializer
    implementation: Implementation = "auto"

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Logits [N, num_classes] of images [N, H, W, C]; `train` is for BatchNorm alone."""
        raise NotImplementedError
