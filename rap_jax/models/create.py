"""Networks by name. A new network is a Linen module in a file of its own, an entry here, and its name in the config."""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from rap_jax.config import ModelConfig, require
from rap_jax.models.layers.convolution import IMPLEMENTATIONS, Implementation
from rap_jax.models.layers.initializers import HINGE, hinge_filters, kernel_initializer
from rap_jax.models.lenet import LeNetCifar, LeNetMnist, LeNetMnistBatchNorm
from rap_jax.models.model import Features, Model, Weights, from_linen
from rap_jax.models.network import Network
from rap_jax.models.resnet import ResNet18
from rap_jax.models.vgg import Vgg16
from rap_jax.models.wide_resnet import WideResNet28
from rap_jax.models.wiring import Wiring

_NETWORKS: dict[str, type[Network]] = {
    "lenet_mnist": LeNetMnist,
    "lenet_mnist_bn": LeNetMnistBatchNorm,
    "lenet_cifar": LeNetCifar,
    "vgg16": Vgg16,
    "resnet18": ResNet18,
    "wide_resnet28": WideResNet28,
}
NETWORKS: tuple[str, ...] = tuple(_NETWORKS)
# Networks that are another one after folding: the same function of parameters of the same names and shapes.
FOLDED_AS: Mapping[str, str] = MappingProxyType({"lenet_mnist_bn": "lenet_mnist"})


def create_model(
    config: ModelConfig,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    implementation: Implementation = "auto",
    features: Mapping[str, int] = MappingProxyType({}),
    folded: bool = False,
) -> Model:
    """The network that `config` names.

    Args:
        input_shape: (height, width, channels) of one image.
        implementation: how convolutions are computed: `auto`, `cpu` or `xla`; see `conv2d` and `conv_relu_pool`. The
            parameters and, up to rounding, the results do not depend on it.
        features: path of a layer -> its number of outputs, for layers that differ from the width, such as
            {"conv1": 4}; the inputs of the layers that read it follow.
        folded: without the statistics of BatchNorm, which are part of its neighbours then; see `compaction.fold`.

    Raises:
        ValueError: for an unknown network, initialisation or implementation (the message lists the known ones), a
            shape that is impossible or too small for the network, or `features` of a layer that has a fixed number.
    """
    require(isinstance(config, ModelConfig), "config", config, 'a ModelConfig, such as ModelConfig("lenet_mnist", 4)')
    require(config.name in _NETWORKS, "model name", config.name, f"one of {', '.join(_NETWORKS)}")
    require(implementation in IMPLEMENTATIONS, "implementation", implementation, f"one of {', '.join(IMPLEMENTATIONS)}")
    network = _NETWORKS[config.name]
    module = network(
        width=config.width,
        num_classes=num_classes,
        kernel_init=kernel_initializer(config.initializer, default=network.DEFAULT_INITIALIZER),
        implementation=implementation,
        features=tuple(features.items()),
        folded=folded,
    )
    _check_features(features, module.wiring())
    shapes: dict[str, Any] = {"input_shape": input_shape, "num_classes": num_classes}
    model = from_linen(module, **shapes, output_layer=network.OUTPUT_LAYER, wiring=module.wiring())
    least = network.MIN_IMAGE_SIZE
    large_enough = min(input_shape[:2]) >= least
    require(large_enough, "input_shape", input_shape, f"images of {least}x{least} pixels or more for {config.name}")
    if config.initializer == HINGE:
        model = _with_hinges(model, config)
    settings: dict[str, Any] = {"implementation": implementation, "features": features, "folded": folded}
    remake = functools.partial(create_model, config=config, **shapes, **settings)
    return dataclasses.replace(model, features=Features(features), folded=folded, remake=remake)


def _with_hinges(model: Model, config: ModelConfig) -> Model:
    """The model whose first convolution starts by `hinge_filters`."""
    first = jax.eval_shape(model.init, jax.random.key(0)).params.get("conv1", {})
    fits = "kernel" in first and "bias" in first
    expected = f"another for {config.name}: hinge needs a first convolution conv1 with a bias, as the LeNets have it"
    require(fits, "initializer", config.initializer, expected)

    def init(key: jax.Array) -> Weights:
        weights = model.init(key)
        kernel, bias = map(jnp.asarray, hinge_filters(first["kernel"].shape))
        return weights._replace(params={**weights.params, "conv1": {"kernel": kernel, "bias": bias}})

    return dataclasses.replace(model, init=init)


def _check_features(features: Mapping[str, int], wiring: Wiring) -> None:
    groups = wiring.groups
    free = sorted(set(groups) - set(wiring.norms))
    expected = f"layers whose number of outputs is free: {', '.join(free) or 'none'}"
    for layer, number in features.items():
        require(layer in free, "features", layer, expected)
        require(number >= 1, f"features of {layer}", number, "1 or more outputs")
        for other in (name for name in free if groups[name] == groups[layer]):
            same = features.get(other) == number
            require(same, f"features of {other}", features.get(other), f"{number}, as of {layer}, to which it adds")
