"""Sparsity as counted from the weights themselves, never from what was asked for."""

from typing import Any

import chex
import numpy as np

from rap_jax.specs import kernels


def count_sparsity(params: chex.ArrayTree) -> dict[str, Any]:
    """Zeros per kernel and overall, ready for JSON.

    Returns:
      `{"layers": {"conv1/kernel": {"size", "zeros", "sparsity", "filters", "filters_kept", "columns",
      "columns_kept"}, ...}, "overall": {"size", "zeros", "sparsity"}}`. `size` counts weights; a filter (last axis)
      or a column (all other axes) is kept if any of its weights is not zero. Biases and BatchNorm do not count.
    """
    layers = {name: _count(np.asarray(kernel)) for name, kernel in kernels(params)}
    size = sum(layer["size"] for layer in layers.values())
    zeros = sum(layer["zeros"] for layer in layers.values())
    return {"layers": layers, "overall": {"size": size, "zeros": zeros, "sparsity": zeros / size}}


def _count(kernel: np.ndarray) -> dict[str, Any]:
    alive = (kernel != 0).reshape(-1, kernel.shape[-1])
    zeros = int(alive.size - alive.sum())
    return {
        "size": int(alive.size),
        "zeros": zeros,
        "sparsity": zeros / alive.size,
        "filters": alive.shape[1],
        "filters_kept": int(alive.any(0).sum()),
        "columns": alive.shape[0],
        "columns_kept": int(alive.any(1).sum()),
    }
