"""The trees of the compacted network, and the original shapes again.

    small = shrink(plan, params)            params, batch_stats or masks of the compacted network
    params = expand(plan, small, params)    in the original shapes

The returned trees hold numpy arrays."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np

from rap_jax.compaction.plan import CompactionPlan, kept_inputs
from rap_jax.pruning.layers import path_name


def shrink(plan: CompactionPlan, tree: chex.ArrayTree) -> chex.ArrayTree:
    """The tree without the removed channels: params, batch_stats, masks, or another tree with a leaf for each of them.

    Raises:
      ValueError: a leaf has not the shape of the network that the plan was made for.
    """
    return _map(plan, lambda leaf, index: np.asarray(leaf)[index], tree)


def expand(plan: CompactionPlan, small: chex.ArrayTree, original: chex.ArrayTree) -> chex.ArrayTree:
    """The tree in its original shapes: the channels of `small` from there, the removed ones from `original`.

    `shrink` has made `small` from `original`, where the weights of a removed constant channel are zero.

    Raises:
      ValueError: a leaf of `original` has not the shape of the network that the plan was made for.
    """

    def put(leaf: Any, index: Any, small_leaf: Any) -> np.ndarray:
        full = np.array(leaf)
        full[index] = np.asarray(small_leaf)
        return full

    return _map(plan, put, original, small)


def _map(plan: CompactionPlan, change: Callable[..., np.ndarray], tree: chex.ArrayTree, *others: chex.ArrayTree) -> Any:
    """`change(leaf, index, *others)` of each leaf, with the index of what stays of it."""

    def one(path: tuple[object, ...], leaf: Any, *other: Any) -> np.ndarray:
        return change(leaf, _index(plan, path_name(path), leaf.shape), *other)

    return jax.tree_util.tree_map_with_path(one, tree, *others)


def _index(plan: CompactionPlan, name: str, shape: tuple[int, ...]) -> Any:
    """What stays of a leaf, as an index of its last two axes, or of its last one."""
    layer, _, leaf = name.rpartition("/")
    outputs = plan.kept.get(layer, np.ones(shape[-1:], bool))
    inputs = kept_inputs(plan, layer, shape) if leaf == "kernel" else None
    if len(outputs) != shape[-1] or (inputs is not None and len(inputs) != shape[-2]):
        raise ValueError(
            f"{name} has shape {shape}; expected {len(outputs)} outputs and the inputs that the plan knows."
        )
    return (..., *np.ix_(*([outputs] if inputs is None else [inputs, outputs])))
