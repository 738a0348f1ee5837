"""The MNIST network of TRADES from its authors' weights, in plain JAX: a network that this package did not make.

Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", 2019,
https://arxiv.org/abs/1901.08573; github.com/yaodongyu/TRADES, models/small_cnn.py.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def trades_network(path: str | Path) -> Callable[[jax.Array], jax.Array]:
    """The network in evaluation mode, with the convolutions of XLA.

    Args:
      path: .npz file of the PyTorch state_dict, `feature_extractor.conv1.weight` and so on, in PyTorch's layout.

    Returns:
      Images [N, 28, 28, 1] in [0, 1] -> logits [N, 10].
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name.split(".", 1)[1]: jnp.asarray(file[name]) for name in file.files}
    kernels = [arrays[f"conv{number}.weight"].transpose(2, 3, 1, 0) for number in range(1, 5)]

    def logits_fn(images: jax.Array) -> jax.Array:
        features = images
        for number, kernel in enumerate(kernels, start=1):
            outputs = lax.conv_general_dilated(
                features, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            features = jax.nn.relu(outputs + arrays[f"conv{number}.bias"].reshape(1, 1, 1, -1))
            if number % 2 == 0:
                features = lax.reduce_window(features, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        hidden = features.transpose(0, 3, 1, 2).reshape(len(images), -1)  # PyTorch flattens channels first
        for name in ("fc1", "fc2", "fc3"):
            hidden = hidden @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"].reshape(1, -1)
            hidden = hidden if name == "fc3" else jax.nn.relu(hidden)
        return hidden

    return logits_fn
