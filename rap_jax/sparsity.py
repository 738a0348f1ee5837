"""Sparsity as counted from the weights themselves, never from what was asked for."""

from typing import Any

import chex
import numpy as np

from rap_jax.layers import belongings, kernels, leaves_by_name


def count_sparsity(params: chex.ArrayTree) -> dict[str, Any]:
    """Zeros per kernel and overall, ready for JSON.

    Returns:
      `{"layers": {"conv1/kernel": {"size", "zeros", "sparsity", "filters", "filters_kept", "columns",
      "columns_kept", "leftovers"}, ...}, "overall": {"size", "zeros", "sparsity", "leftovers"}}`. `size` counts
      weights; a filter (last axis) or a column (all other axes) is kept if any of its weights is not zero. Biases and
      BatchNorm do not count, but `leftovers` are those of them that are not zero though their filter is: constants
      that a removed filter would go on sending, 0 after a cut.
    """
    leaves = leaves_by_name(params)
    layers = {}
    for name, kernel in kernels(params):
        beside = [np.asarray(leaves[belonging]) for belonging in belongings(name, leaves)]
        layers[name] = _count(np.asarray(kernel), beside)
    size, zeros, leftovers = (sum(layer[key] for layer in layers.values()) for key in ("size", "zeros", "leftovers"))
    overall = {"size": size, "zeros": zeros, "sparsity": zeros / size, "leftovers": leftovers}
    return {"layers": layers, "overall": overall}


def _count(kernel: np.ndarray, beside: list[np.ndarray]) -> dict[str, Any]:
    alive = (kernel != 0).reshape(-1, kernel.shape[-1])
    zeros = int(alive.size - alive.sum())
    filters = alive.any(0)
    return {
        "size": int(alive.size),
        "zeros": zeros,
        "sparsity": zeros / alive.size,
        "filters": alive.shape[1],
        "filters_kept": int(filters.sum()),
        "columns": alive.shape[0],
        "columns_kept": int(alive.any(1).sum()),
        "leftovers": sum(int(np.count_nonzero(values[~filters])) for values in beside),
    }
