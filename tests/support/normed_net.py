"""A chain of convolutions with BatchNorm that can be cut anywhere, small enough to train in a test."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import pytest
from flax import linen as nn

from rap_jax.models import create
from rap_jax.models.layers.linear import ConvNorm, Dense
from rap_jax.models.network import Network


class NormedNet(Network):
    """Two convolutions with BatchNorm, 4w and 4w filters."""

    OUTPUT_LAYER: ClassVar[str] = "fc"
    DEFAULT_INITIALIZER: ClassVar[str] = "pytorch"
    USE_BIAS: ClassVar[bool] = False
    READS: ClassVar[Mapping[str, str]] = {"conv2": "conv1", "fc": "conv2"}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        hidden = images
        for name in ("conv1", "conv2"):
            features = self.num_outputs(name, 4 * self.width)
            settings = {"padding": 1, "use_bias": self.USE_BIAS, "folded": self.folded}
            conv = ConvNorm(features, kernel_size=3, kernel_init=self.kernel_init, name=name, **settings)
            hidden = nn.relu(conv(hidden, train))
        return Dense(self.num_classes, name="fc")(hidden.mean((1, 2)))


class BiasedNet(NormedNet):
    """The same with a bias before each BatchNorm, as VGG-16 has it."""

    USE_BIAS: ClassVar[bool] = True


def add_normed_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the networks above two of `create_model`, by the names `normed_net` and `biased_net`."""
    networks = {"normed_net": NormedNet, "biased_net": BiasedNet}
    monkeypatch.setattr(create, "_NETWORKS", create._NETWORKS | networks)
