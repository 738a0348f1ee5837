"""The LeNet of the paper's CIFAR-10 experiments, of any width."""

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import jax
from flax import linen as nn

from rap_jax.models.conv import Conv
from rap_jax.models.dense import Dense
from rap_jax.models.network import Network
from rap_jax.models.pool import max_pool


class LeNetCifar(Network):
    """LeNet of width w: conv 6w, pool, conv 16w, pool, dense 120w, 84w, 10; 5x5 kernels without padding, ReLU.

    The parameters for w = 1, 2, 4, 8, 16 and 32x32x3 images are 62,006, 244,962, 973,754, 3,882,858 and 15,507,146.
    The input of `fc1` is flattened as [height, width, channel]; PyTorch flattens as [channel, height, width].

    Reference: Ye et al., 2019, Table 1, https://arxiv.org/abs/1903.12561.
    """

    OUTPUT_LAYER: ClassVar[str] = "fc3"
    DEFAULT_INITIALIZER: ClassVar[str] = "pytorch"
    MIN_IMAGE_SIZE: ClassVar[int] = 16
    READS: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"conv2": "conv1", "fc1": "conv2", "fc2": "fc1", "fc3": "fc2"}
    )
    UNPADDED: ClassVar[tuple[str, ...]] = ("conv2",)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """See `Network`. `train` changes nothing: there is no BatchNorm."""
        del train
        conv = functools.partial(
            Conv, kernel_size=5, use_bias=True, kernel_init=self.kernel_init, implementation=self.implementation
        )
        hidden = max_pool(nn.relu(conv(self.num_outputs("conv1", 6 * self.width), name="conv1")(images)))
        hidden = max_pool(nn.relu(conv(self.num_outputs("conv2", 16 * self.width), name="conv2")(hidden)))
        hidden = hidden.reshape(hidden.shape[0], math.prod(hidden.shape[1:]))
        hidden = nn.relu(Dense(self.num_outputs("fc1", 120 * self.width), name="fc1")(hidden))
        hidden = nn.relu(Dense(self.num_outputs("fc2", 84 * self.width), name="fc2")(hidden))
        return Dense(self.num_classes, name=self.OUTPUT_LAYER)(hidden)
