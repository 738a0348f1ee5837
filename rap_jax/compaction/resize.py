"""The smaller network's trees, and the whole ones again.

    small = shrink(plan, params)                        params, batch_stats or masks of the smaller network
    params = expand(plan, small, params)                the whole network again

The trees that come back hold numpy arrays."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np

from rap_jax.compaction.plan import Plan, kept_inputs
from rap_jax.pruning.layers import path_name


def shrink(plan: Plan, tree: chex.ArrayTree) -> chex.ArrayTree:
    """The tree without what is removed: params, batch_stats, masks, or another tree with one leaf for each of those.

    Raises:
      ValueError: a leaf has not the shape of the network that the plan was made for.
    """
    return _map(plan, lambda leaf, index: np.asarray(leaf)[index], tree)


def expand(plan: Plan, small: chex.ArrayTree, start: chex.ArrayTree) -> chex.ArrayTree:
    """The whole tree again: what `small` has is from there, what was removed is as in `start`.

    Args:
      small: a tree as `shrink` gives it.
      start: the whole tree that `small` comes from; what was removed of an output that sends nothing is zero there.

    Raises:
      ValueError: a leaf of `start` has not the shape of the network that the plan was made for.
    """

    def put(leaf: Any, index: Any, small_leaf: Any) -> np.ndarray:
        whole = np.array(leaf)
        whole[index] = np.asarray(small_leaf)
        return whole

    return _map(plan, put, start, small)


def _map(plan: Plan, change: Callable[..., np.ndarray], tree: chex.ArrayTree, *others: chex.ArrayTree) -> Any:
    """`change(leaf, index, *others)` of each leaf, with the index of what stays of it."""

    def one(path: tuple[object, ...], leaf: Any, *other: Any) -> np.ndarray:
        return change(leaf, _index(plan, path_name(path), leaf.shape), *other)

    return jax.tree_util.tree_map_with_path(one, tree, *others)


def _index(plan: Plan, name: str, shape: tuple[int, ...]) -> Any:
    """What stays of a leaf, as an index of its last two axes, or of its last one."""
    layer, _, leaf = name.rpartition("/")
    outputs = plan.kept.get(layer, np.ones(shape[-1:], bool))
    inputs = kept_inputs(plan, layer, shape) if leaf == "kernel" else None
    if len(outputs) != shape[-1] or (inputs is not None and len(inputs) != shape[-2]):
        raise ValueError(
            f"{name} has shape {shape}; expected {len(outputs)} outputs and the inputs that the plan knows."
        )
    if inputs is None:
        return (..., np.flatnonzero(outputs))
    return (..., np.flatnonzero(inputs).reshape(-1, 1), np.flatnonzero(outputs).reshape(1, -1))
