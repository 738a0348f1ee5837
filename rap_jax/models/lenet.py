"""The LeNets of the paper's MNIST and CIFAR-10 experiments, of any width; the one for MNIST also with BatchNorm."""

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import jax
from flax import linen as nn

from rap_jax.models.layers.linear import Conv, Dense, DenseNorm
from rap_jax.models.layers.pool import ConvNormReluPool, ConvReluPool, max_pool
from rap_jax.models.network import Network


class LeNetMnist(Network):
    """LeNet of width w: conv 2w, pool, conv 4w, pool, dense 64w, dense 10; 5x5 kernels, padding 2, ReLU.

    Width 16 is the 32/64/1024 network of Madry et al.; the parameters for w = 1, 2, 4, 8, 16 and 28x28x1 images are
    13,514, 52,506, 206,954, 821,706 and 3,274,634. The input of `fc1` is flattened as [height, width, channel];
    PyTorch flattens as [channel, height, width].

    Reference: Ye et al., 2019, Table 1, https://arxiv.org/abs/1903.12561.
    """

    OUTPUT_LAYER: ClassVar[str] = "fc2"
    DEFAULT_INITIALIZER: ClassVar[str] = "xavier_uniform"
    MIN_IMAGE_SIZE: ClassVar[int] = 4
    READS: ClassVar[Mapping[str, str]] = MappingProxyType({"conv2": "conv1", "fc1": "conv2", "fc2": "fc1"})

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """See `Network`. `train` changes nothing: there is no BatchNorm."""
        del train
        conv = functools.partial(
            ConvReluPool, kernel_size=5, kernel_init=self.kernel_init, implementation=self.implementation
        )
        hidden = conv(self.num_outputs("conv1", 2 * self.width), name="conv1")(images)
        hidden = conv(self.num_outputs("conv2", 4 * self.width), name="conv2")(hidden)
        hidden = hidden.reshape(hidden.shape[0], math.prod(hidden.shape[1:]))
        hidden = nn.relu(Dense(self.num_outputs("fc1", 64 * self.width), name="fc1")(hidden))
        return Dense(self.num_classes, name=self.OUTPUT_LAYER)(hidden)


class LeNetMnistBatchNorm(LeNetMnist):
    """`LeNetMnist` with a BatchNorm in place of the biases of `conv1`, `conv2` and `fc1`, for training.

    Folded, it is that network: its parameters have the same names, shapes and meaning, and are as many. Before that it
    has one number more for each of these outputs: 13,584 for w = 1.

    Reference: Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167.
    """

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """See `Network`."""
        conv = functools.partial(
            ConvNormReluPool,
            kernel_size=5,
            kernel_init=self.kernel_init,
            implementation=self.implementation,
            folded=self.folded,
        )
        hidden = conv(self.num_outputs("conv1", 2 * self.width), name="conv1")(images, train)
        hidden = conv(self.num_outputs("conv2", 4 * self.width), name="conv2")(hidden, train)
        hidden = hidden.reshape(hidden.shape[0], math.prod(hidden.shape[1:]))
        fc1 = DenseNorm(self.num_outputs("fc1", 64 * self.width), folded=self.folded, name="fc1")
        return Dense(self.num_classes, name=self.OUTPUT_LAYER)(nn.relu(fc1(hidden, train)))


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
