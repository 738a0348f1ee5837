"""A network as the state_dict of its PyTorch twin, in a `.safetensors` file: names and layout as PyTorch has them.

Kernels are [out, in, height, width] and [out, in]; a dense layer that reads a flattened image reads it as [channel,
height, width]; BatchNorm has weight, bias, running_mean, running_var and num_batches_tracked. The metadata lie in the
file's header under `rap_jax`. Names: see `pytorch_names`.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rap_jax.export.optional import optional_module
from rap_jax.export.pytorch_names import pytorch_names
from rap_jax.state import Weights

METADATA_KEY = "rap_jax"
# Dense layers that read a flattened image, and the layer that makes it.
_FLATTENED = {"lenet_mnist": {"fc1": "conv2"}, "lenet_cifar": {"fc1": "conv2"}}
_VECTORS = {"scale": "weight", "shift": "bias", "mean": "running_mean", "var": "running_var"}


def state_dict(network: str, weights: Weights) -> dict[str, np.ndarray]:
    """Name in PyTorch -> array, of a network that is not folded.

    Raises:
      ValueError: the network has no names in PyTorch.
    """
    layers = _layers(weights)
    found: dict[str, np.ndarray] = {}
    for layer, leaves in layers.items():
        names = pytorch_names(network, layer)
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
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            layer, _, name = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")
            layers.setdefault(layer, {})[name] = np.asarray(leaf)
    return layers


def _kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
    """[k, k, in, out] -> [out, in, k, k]; [in, out] -> [out, in], where `in` is [..., channels] -> [channels, ...]."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    places = kernel.reshape(-1, channels, kernel.shape[1])
    return places.transpose(2, 1, 0).reshape(kernel.shape[1], -1)
