"""A network as the state_dict of its PyTorch twin, in a `.safetensors` file: names and layout as PyTorch has them.

Kernels are [out, in, height, width] and [out, in]; a dense layer that reads a flattened image reads it as [channel,
height, width]; BatchNorm has weight, bias, running_mean, running_var and num_batches_tracked. The metadata lie in the
file's header under `rap_jax`.

LeNet (MNIST and CIFAR), VGG-16 and ResNet-18 have the names of the authors' networks (`LeNet_adv`, `VGG_adv` and
`ResNet_adv` of https://github.com/yeshaokai/Robustness-Aware-Pruning-ADMM), into which their weights can be loaded.
Two things to know of those: the authors' LeNet for MNIST ends with a log-softmax, and their VGG-16 and ResNet-18 take
images of 32x32 only. `lenet_mnist_bn` has the names of the first and a BatchNorm bn1, bn2, bn3 behind each; folded, it
is exported as the first. The authors have no WRN-28 with pre-activation blocks; ours has the names of
https://github.com/xternalz/WideResNet-pytorch, which TRADES and RobustBench have too.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rap_jax._runtime.environment import optional_module
from rap_jax._runtime.integrity import named_leaves
from rap_jax.models.model import Weights

METADATA_KEY = "rap_jax"
# Dense layers that read a flattened image, and the layer that makes it.
_FLATTENED = {name: {"fc1": "conv2"} for name in ("lenet_mnist", "lenet_mnist_bn", "lenet_cifar")}
_VECTORS = {"scale": "weight", "shift": "bias", "mean": "running_mean", "var": "running_var"}
_VGG_GROUPS = (2, 2, 3, 3, 3)  # convolutions between two poolings


class ModuleNames(NamedTuple):
    """Names of the PyTorch modules of a layer."""

    kernel: str | None  # of the convolution or dense layer, None for a BatchNorm that stands alone
    norm: str | None = None  # of the BatchNorm, None where there is none


def _lenet_batch_norm(layer: str) -> ModuleNames:
    return ModuleNames(layer, {"conv1": "bn1", "conv2": "bn2", "fc1": "bn3"}.get(layer))


def _vgg(layer: str) -> ModuleNames:
    if layer == "fc":
        return ModuleNames("classifier")
    number = int(layer.removeprefix("conv")) - 1
    ends = [sum(_VGG_GROUPS[: group + 1]) for group in range(len(_VGG_GROUPS))]
    num_pools = sum(number >= end for end in ends)
    place = 3 * number + num_pools  # convolution, BatchNorm, ReLU; one pooling after each group
    return ModuleNames(f"features.{place}", f"features.{place + 1}")


def _resnet(layer: str) -> ModuleNames:
    block, _, inner = layer.rpartition("/")
    prefix = f"layer{block[5]}.{block[-1]}." if block else ""
    by_layer = {"conv1": ModuleNames("conv1", "bn1"), "conv2": ModuleNames("conv2", "bn2"),
                "shortcut": ModuleNames("shortcut.0", "shortcut.1"), "fc": ModuleNames("linear")}  # fmt: skip
    return _within(prefix, by_layer[inner])


def _wide_resnet(layer: str) -> ModuleNames:
    block, _, inner = layer.rpartition("/")
    if not block:
        return {"conv1": ModuleNames("conv1"), "norm": ModuleNames(None, "bn1"), "fc": ModuleNames("fc")}[inner]
    by_layer = {"norm1": ModuleNames(None, "bn1"), "conv1": ModuleNames("conv1", "bn2"), "conv2": ModuleNames("conv2"),
                "shortcut": ModuleNames("convShortcut")}  # fmt: skip
    return _within(f"block{block[5]}.layer.{block[-1]}.", by_layer[inner])


def _within(prefix: str, names: ModuleNames) -> ModuleNames:
    return ModuleNames(*(None if name is None else prefix + name for name in names))


# Of each network of `create_model`: a layer, such as `group1_block0/conv1` -> its names.
_NAMES: Mapping[str, Callable[[str], ModuleNames]] = {
    "lenet_mnist": ModuleNames,
    "lenet_mnist_bn": _lenet_batch_norm,
    "lenet_cifar": ModuleNames,
    "vgg16": _vgg,
    "resnet18": _resnet,
    "wide_resnet28": _wide_resnet,
}


def state_dict(network: str, weights: Weights) -> dict[str, np.ndarray]:
    """Name in PyTorch -> array, of a network that is not folded.

    Raises:
      ValueError: the network has no names in PyTorch.
    """
    if network not in _NAMES:
        raise ValueError(f"model is {network!r}, whose names in PyTorch are not known; expected {', '.join(_NAMES)}.")
    layers = _layers(weights)
    found: dict[str, np.ndarray] = {}
    for layer, leaves in layers.items():
        names = _NAMES[network](layer)
        if names.kernel is not None:
            producer = _FLATTENED.get(network, {}).get(layer)
            channels = layers[producer]["kernel"].shape[-1] if producer else 1
            found[f"{names.kernel}.weight"] = _kernel(leaves["kernel"], channels)
            found |= {f"{names.kernel}.bias": leaves["bias"]} if "bias" in leaves else {}
        if names.norm is not None:
            found |= {f"{names.norm}.{word}": leaves[leaf] for leaf, word in _VECTORS.items()}
            found[f"{names.norm}.num_batches_tracked"] = np.zeros((), np.int64)
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def safetensors_bytes(network: str, weights: Weights, metadata: Mapping[str, Any]) -> bytes:
    """The file.

    Raises:
      ValueError: safetensors is not installed, or the network has no names in PyTorch.
    """
    save = optional_module("safetensors.numpy").save
    content: bytes = save(state_dict(network, weights), metadata={METADATA_KEY: json.dumps(metadata)})
    return content


def _layers(weights: Weights) -> dict[str, dict[str, np.ndarray]]:
    """Path of a layer -> name -> array, parameters and statistics together."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for tree in weights:
        for path, leaf in named_leaves(tree):
            layer, _, name = path.rpartition("/")
            layers.setdefault(layer, {})[name] = np.asarray(leaf)
    return layers


def _kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
    """[k, k, in, out] -> [out, in, k, k]; [in, out] -> [out, in], where `in` is [..., channels] -> [channels, ...]."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    places = kernel.reshape(-1, channels, kernel.shape[1])
    return places.transpose(2, 1, 0).reshape(kernel.shape[1], -1)
