"""The same network without the outputs that count for nothing: smaller layers, the same function.

    plan = compaction_plan(model.reads, params, masks)
    plan.features                                       {"conv1": 4, "fc1": 64}: outputs left, where some are gone
    small = shrink(plan, params)                        params, batch_stats or masks of the smaller network
    params = expand(plan, small, params)                the whole network again

An output of a layer (a filter, or a neuron of a dense layer) is removed, with the inputs that read it, if

  it sends nothing    its weights, bias, scale and shift are zero. Behind the ReLU it sends 0, and gets no gradient; or
  nobody reads it     all weights that would read it are zero, and the masks hold them there (column pruning).

What is removed leaves others without inputs or without readers, so both are asked until nothing changes. At least one
output of each layer stays. Only layers named in `model.reads` are looked at: what adds up in a residual network stays.

A column of a convolution is one place of the kernel in one channel. Where only some places of a channel are gone, the
convolution has no smaller form, and they stay as zeros under the masks.

Differs from masked training of the whole network: (1) weights that read removed outputs, or make outputs that nobody
reads, are not there, so they end as they began. Whole, they get no gradient either, but weight decay shrinks them; they
multiply zeros, or are multiplied by them, so the function is the same. (2) So do the BatchNorm statistics of removed
outputs; whole, they move to those of a constant.

Works on the host, on any tree with a `reads` and layers as in `layers`; the trees that come back hold numpy arrays.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chex
import jax
import numpy as np

from rap_jax.layers import leaves_by_name, path_name

Reads = Iterable[tuple[str, str]]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What stays of a network.

    Attributes:
      producers: path of a layer -> path of the layer whose outputs it reads.
      kept: path of a layer whose outputs may go -> which of them stay, bool [outputs].
    """

    producers: Mapping[str, str]
    kept: Mapping[str, np.ndarray]

    @property
    def features(self) -> dict[str, int]:
        """Path -> number of outputs, of the layers that lose some; empty if there is nothing to remove."""
        return {layer: int(kept.sum()) for layer, kept in self.kept.items() if not kept.all()}


def compaction_plan(reads: Reads, params: chex.ArrayTree, masks: chex.ArrayTree | None = None) -> Plan:
    """Finds the outputs that can be removed, see above; the same weights and masks give the same plan.

    Args:
      reads: (reader, producer) pairs, paths of layers in `params`; see `Model.reads`.
      params: weights, after a cut.
      masks: False where a weight is held at zero, bool tree like `params`; None if none is.

    Raises:
      ValueError: `reads` names a layer that `params` does not have, or whose inputs are not the outputs of the other.
    """
    producers = dict(reads)
    leaves = {name: np.asarray(leaf) for name, leaf in leaves_by_name(params).items()}
    _check(producers, leaves)
    silent = _held_at_zero(leaves, masks)
    plan = Plan(producers, {layer: np.ones(_outputs(layer, leaves), bool) for layer in producers.values()})
    while True:
        counts = {
            layer: kept & _sends(plan, layer, leaves) & _is_read(plan, layer, silent)
            for layer, kept in plan.kept.items()
        }
        kept = {layer: found if found.any() else _first(plan.kept[layer]) for layer, found in counts.items()}
        if all(np.array_equal(kept[layer], plan.kept[layer]) for layer in kept):
            return plan
        plan = Plan(producers, kept)


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
    inputs = _kept_inputs(plan, layer, shape) if leaf == "kernel" else None
    if len(outputs) != shape[-1] or (inputs is not None and len(inputs) != shape[-2]):
        raise ValueError(
            f"{name} has shape {shape}; expected {len(outputs)} outputs and the inputs that the plan knows."
        )
    if inputs is None:
        return (..., np.flatnonzero(outputs))
    return (..., np.flatnonzero(inputs).reshape(-1, 1), np.flatnonzero(outputs).reshape(1, -1))


def _kept_inputs(plan: Plan, layer: str, shape: tuple[int, ...]) -> np.ndarray:
    """Which inputs of a kernel stay, bool [inputs]: of a flattened image [height, width, channel], by channel."""
    if layer not in plan.producers:
        return np.ones(shape[-2], bool)
    channels = plan.kept[plan.producers[layer]]
    return np.tile(channels, shape[-2] // len(channels))


def _sends(plan: Plan, layer: str, leaves: Mapping[str, np.ndarray]) -> np.ndarray:
    """Outputs that have something other than zero, in the inputs that stay or beside the kernel: bool [outputs]."""
    kernel = leaves[f"{layer}/kernel"]
    inputs = _kept_inputs(plan, layer, kernel.shape)
    found = (kernel[..., inputs, :] != 0).reshape(-1, kernel.shape[-1]).any(0)
    for name, leaf in leaves.items():
        if name.rpartition("/")[0] == layer and name != f"{layer}/kernel":
            found |= leaf != 0
    return found


def _is_read(plan: Plan, layer: str, silent: Mapping[str, np.ndarray]) -> np.ndarray:
    """Outputs that some weight reads which is not held at zero, in a filter that stays: bool [outputs]."""
    num_outputs = len(plan.kept[layer])
    found = np.zeros(num_outputs, bool)
    for reader in (reader for reader, producer in plan.producers.items() if producer == layer):
        reading = ~silent[f"{reader}/kernel"]
        reading = reading[..., plan.kept[reader]] if reader in plan.kept else reading
        found |= reading.reshape(-1, num_outputs, reading.shape[-1]).any((0, 2))
    return found


def _held_at_zero(leaves: Mapping[str, np.ndarray], masks: chex.ArrayTree | None) -> dict[str, np.ndarray]:
    """True where a weight is zero and remains it, bool leaves by name."""
    if masks is None:
        return {name: np.zeros(leaf.shape, bool) for name, leaf in leaves.items()}
    return {name: (leaves[name] == 0) & ~np.asarray(keep) for name, keep in leaves_by_name(masks).items()}


def _first(kept: np.ndarray) -> np.ndarray:
    return np.arange(len(kept)) == kept.argmax()


def _outputs(layer: str, leaves: Mapping[str, np.ndarray]) -> int:
    return int(leaves[f"{layer}/kernel"].shape[-1])


def _check(producers: Mapping[str, str], leaves: Mapping[str, np.ndarray]) -> None:
    missing = {name for pair in producers.items() for name in pair if f"{name}/kernel" not in leaves}
    if missing:
        raise ValueError(
            f"reads names {', '.join(sorted(missing))}; expected layers with a kernel, of {', '.join(leaves)}."
        )
    for reader, producer in producers.items():
        inputs, outputs = leaves[f"{reader}/kernel"].shape[-2], _outputs(producer, leaves)
        if inputs % outputs:
            raise ValueError(
                f"{reader} has {inputs} inputs; expected a multiple of the {outputs} outputs of {producer}, which it "
                f"reads."
            )
