"""Sparsity as counted from the weights themselves, never from what was asked for."""

from typing import Any

import chex
import numpy as np

from rap_jax.layers import is_kernel, is_weight
from rap_jax.ownership import Specs, check_stack, checked, has_clear_outputs, outputs_of, owned, owners
from rap_jax.projections import check_finite


def count_sparsity(params: chex.ArrayTree, specs: Specs | None = None) -> dict[str, Any]:
    """Zeros per kernel and overall, ready for JSON.

    Args:
      specs: the sparsity sets, where they name weights that are not called `kernel`, or what belongs to them elsewhere
        in the tree.

    Returns:
      `{"layers": {"conv1/kernel": {"size", "zeros", "sparsity", "filters", "filters_kept", "columns",
      "columns_kept", "leftovers"}, ...}, "overall": {"size", "zeros", "sparsity", "leftovers"}}`. `size` counts
      weights; a filter (last axis) or a column (all other axes) is kept if any of its weights is not zero. Biases and
      BatchNorm do not count, but `leftovers` are those of them that are not zero though their filter is: constants that
      a removed filter would go on sending, 0 after a cut. Filters and columns are None where the outputs lie on several
      axes, or no spec tells a stack of layers. A share of no weights at all is 0.

    Raises:
      ValueError: a weight is NaN or infinite, or may be a stack of layers; weights have inputs and outputs, but none of
        them is named `kernel` or by a spec.
    """
    named, leaves = checked({} if specs is None else specs, params)
    everything = owners(named, leaves)
    weights = [
        name for name, leaf in leaves.items() if is_kernel(name) or (name in everything and is_weight(name, leaf))
    ]
    _refuse_other_names(weights, leaves)
    layers = {}
    for name in weights:
        spec = everything.get(name)
        if specs is None:
            check_stack(name, spec, leaves)
        for counted in (name, *owned(name, spec, leaves)):
            check_finite(counted, leaves[counted])
        beside = [np.asarray(leaves[belonging]) for belonging in owned(name, spec, leaves)]
        layers[name] = _count(np.asarray(leaves[name]), beside, len(outputs_of(name, spec, leaves)) - 1)
        if not has_clear_outputs(name, spec, leaves):
            layers[name] |= dict.fromkeys(("filters", "filters_kept", "columns", "columns_kept"))
    size, zeros, leftovers = (sum(layer[key] for layer in layers.values()) for key in ("size", "zeros", "leftovers"))
    overall = {"size": size, "zeros": zeros, "sparsity": _share(zeros, size), "leftovers": leftovers}
    return {"layers": layers, "overall": overall}


def _refuse_other_names(weights: list[str], leaves: dict[str, Any]) -> None:
    others = [name for name, leaf in leaves.items() if is_weight(name, leaf)]
    if others and not weights:
        raise ValueError(
            f"No weights are named kernel, but {', '.join(others)} have inputs and outputs; expected "
            f"count_sparsity(params, specs) with the specs of those that count."
        )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _count(kernel: np.ndarray, beside: list[np.ndarray], stack_axes: int) -> dict[str, Any]:
    layers = (kernel != 0).reshape(*kernel.shape[:stack_axes], -1, kernel.shape[-1])
    filters = layers.any(-2)
    zeros = int(layers.size - layers.sum())
    per_output = [values.reshape(*filters.shape[:-1], -1, filters.shape[-1]) for values in beside]
    return {
        "size": int(layers.size),
        "zeros": zeros,
        "sparsity": _share(zeros, layers.size),
        "filters": int(filters.size),
        "filters_kept": int(filters.sum()),
        "columns": layers.size // kernel.shape[-1],
        "columns_kept": int(layers.any(-1).sum()),
        "leftovers": sum(int(np.count_nonzero((values != 0) & ~filters[..., None, :])) for values in per_output),
    }
