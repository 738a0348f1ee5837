"""Which channels of a network cannot affect the logits, and are removable.

    plan = compaction_plan(model.wiring, params, masks)                      for training
    plan = compaction_plan(model.wiring, params, batch_stats=batch_stats)    for inference
    plan.features            {"conv1": 4, "fc1": 64}: outputs left, where some are removed
    plan.bias_corrections    {"fc1": [64]}: to be added to biases; for inference only

A channel (the output of a filter, or of a neuron of a dense layer) is removable, with the weights that read it, if

  it is constant     the weights of all layers that write it are zero, and so is its constant: its bias, scale and shift
                     in evaluation mode, and the BatchNorm behind a sum of it (see `inference_constants`); or the
                     constant is another one that each reader can add to its bias without error: a dense layer, or a
                     convolution without padding, that has a bias and no BatchNorm; or
  it is unread       all weights that would read it are zero.

A removed channel may leave other channels without inputs or without readers, so both are repeated until nothing
changes. Channels that add up in a residual network belong to all layers that write them, and are removed together (see
`rap_jax.models.wiring`).

For inference the logits in evaluation mode stay the same. For training, so do the logits in training mode and all
gradients: masks say which zeros are held, since others grow again, and the bias, scale and shift of a removed filter
must be zero; after the ReLU it is then 0 and gets no gradient. At least one channel of each layer stays.

A column of a convolution is one place of the kernel in one channel. Where only some places of a channel are zero, the
convolution has no smaller form, and they stay as zeros.

Differs from masked training of the full network: (1) weights that read removed outputs, or make unread outputs, are
absent, so they end as they began. In the full network they get no gradient either, but weight decay shrinks them; they
multiply zeros, or are multiplied by zeros, so the function is the same. (2) The BatchNorm statistics of removed outputs
also end as they began; in the full network they converge to those of a constant.

Runs on the host, on any tree with layers as in `rap_jax.pruning.layers`.
"""

import dataclasses
from collections.abc import Mapping

import chex
import numpy as np

from rap_jax.models.layers.batch_norm import BATCH_NORM_EPSILON
from rap_jax.models.wiring import Wiring
from rap_jax.pruning.layers import leaves_by_name

Leaves = Mapping[str, np.ndarray]  # by name, such as conv1/kernel
Constants = Mapping[str, np.ndarray]  # by layer: the output without inputs, before the ReLU, float64 [outputs]


def numpy_by_name(tree: chex.ArrayTree) -> dict[str, np.ndarray]:
    """All leaves by name, as arrays on the host."""
    return {name: np.asarray(leaf) for name, leaf in leaves_by_name(tree).items()}


def inference_constants(leaves: Leaves, batch_stats: Leaves) -> Constants:
    """The output of each layer without inputs, before the ReLU, in evaluation mode: float64 [outputs].

    It follows from bias, scale, shift and statistics; a BatchNorm that stands alone gets zeros as its inputs.
    """
    found = {}
    for layer, width in _widths(leaves).items():
        value = np.asarray(leaves.get(f"{layer}/bias", np.zeros(width)), np.float64)
        if f"{layer}/scale" in leaves:
            factor, offset = inference_norm(layer, leaves, batch_stats)
            value = value * factor + offset
        found[layer] = value
    return found


def inference_norm(layer: str, leaves: Leaves, batch_stats: Leaves) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset of a BatchNorm in evaluation mode, float64 [outputs]; a folded one has no statistics."""
    scale, shift = (leaves[f"{layer}/{name}"].astype(np.float64) for name in ("scale", "shift"))
    if f"{layer}/mean" not in batch_stats:
        return scale, shift
    mean, var = (batch_stats[f"{layer}/{name}"].astype(np.float64) for name in ("mean", "var"))
    factor = scale / np.sqrt(var + BATCH_NORM_EPSILON)
    return factor, shift - mean * factor


def training_constants(leaves: Leaves) -> Constants:
    """The same in training mode: 0 where bias, scale and shift are all zero, NaN elsewhere."""
    found = {}
    for layer, width in _widths(leaves).items():
        beside = [leaf for name, leaf in leaves.items() if name.rpartition("/")[0] == layer and leaf.shape == (width,)]
        zero = np.all([leaf == 0 for leaf in beside], axis=0) if beside else np.ones(width, bool)
        found[layer] = np.where(zero, 0.0, np.nan)
    return found


def _widths(leaves: Leaves) -> dict[str, int]:
    """Layer -> number of its outputs."""
    return {name.rpartition("/")[0]: leaf.shape[-1] for name, leaf in leaves.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class CompactionPlan:
    """The channels that stay. Layers are named by their paths."""

    producers: Mapping[str, str]  # layer -> one of the layers whose outputs it reads
    kept: Mapping[str, np.ndarray]  # layer with removable outputs -> which of them stay, bool [outputs]
    # Layer -> what removed constants add to its bias, float64 [outputs].
    bias_corrections: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    norms: tuple[str, ...] = ()  # BatchNorms that stand alone; `kept` has them too

    @property
    def features(self) -> dict[str, int]:
        """Path -> number of outputs, of the layers that lose some; empty if there is nothing to remove."""
        layers = {layer: kept for layer, kept in self.kept.items() if layer not in self.norms}
        return {layer: int(kept.sum()) for layer, kept in layers.items() if not kept.all()}


def compaction_plan(
    wiring: Wiring,
    params: chex.ArrayTree,
    masks: chex.ArrayTree | None = None,
    *,
    batch_stats: chex.ArrayTree | None = None,
) -> CompactionPlan:
    """Finds the removable channels, see above; the same weights and masks give the same plan.

    Args:
      wiring: see `Model.wiring`.
      params: weights, after a cut.
      masks: False where a weight is held at zero, bool tree like `params`; None if none is. For training only.
      batch_stats: statistics of BatchNorm, {} if there are none, to plan for inference; None to plan for training.

    Raises:
      ValueError: the wiring names a layer that `params` does not have, or whose inputs are not the outputs of the
        other; for inference: no output of a layer would be left; names it.
    """
    leaves = numpy_by_name(params)
    check_wiring(wiring, leaves)
    if batch_stats is None:
        return _plan(wiring, leaves, _held_at_zero(leaves, masks), training_constants(leaves), for_inference=False)
    constants = inference_constants(leaves, numpy_by_name(batch_stats))
    return _plan(wiring, leaves, {name: leaf == 0 for name, leaf in leaves.items()}, constants, for_inference=True)


def _plan(
    wiring: Wiring, leaves: Leaves, zeros: Leaves, constants: Constants, *, for_inference: bool
) -> CompactionPlan:
    kept = {layer: np.ones(_width(group, leaves), bool) for layer, group in wiring.groups.items()}
    plan = CompactionPlan(wiring.readers, kept, norms=wiring.norms)
    while True:
        # The constants of removed inputs are part of the constant of their reader.
        total = {layer: constant + plan.bias_corrections.get(layer, 0.0) for layer, constant in constants.items()}
        kept = {}
        for group in dict.fromkeys(wiring.groups.values()):
            is_constant = _is_removable_constant(wiring, group, plan, leaves, total, for_inference)
            kept[group] = plan.kept[group] & ~is_constant & _is_read(group, plan, zeros)
        vanished = [group for group, channels in kept.items() if not channels.any()]
        if vanished and for_inference:
            layers = ", ".join(layer for layer, group in wiring.groups.items() if group in vanished)
            raise ValueError(
                f"Nothing would be left of {layers}: all outputs are removed, or read by nobody; expected at least one "
                f"of each layer: prune less."
            )
        first = lambda channels: np.arange(len(channels)) == channels.argmax()
        kept |= {group: first(plan.kept[group]) for group in vanished}
        if all(np.array_equal(kept[group], plan.kept[group]) for group in kept):
            return plan
        plan = dataclasses.replace(plan, kept={layer: kept[group] for layer, group in wiring.groups.items()})
        if for_inference:
            plan = dataclasses.replace(plan, bias_corrections=_bias_corrections(wiring, plan, leaves, total))


def _is_removable_constant(
    wiring: Wiring, group: str, plan: CompactionPlan, leaves: Leaves, constants: Constants, for_inference: bool
) -> np.ndarray:
    """Channels that are 0, or a constant that all readers can add to their biases: bool [channels]."""
    by_reader = {reader: _constant_of(wiring, reader, plan, leaves, constants) for reader in _readers_of(group, plan)}
    found = np.ones(len(plan.kept[group]), bool)
    for reader, constant in by_reader.items():
        is_absorbed = for_inference and _absorbs_constants(wiring, reader, leaves)
        found &= ~np.isnan(constant) if is_absorbed else constant == 0
    return found if by_reader else np.zeros_like(found)


def _constant_of(wiring: Wiring, reader: str, plan: CompactionPlan, leaves: Leaves, constants: Constants) -> np.ndarray:
    """The constant that a reader gets from each channel, NaN from one that is no constant: float [channels]."""
    group = plan.producers[reader]
    writers = [layer for layer, one in wiring.groups.items() if one == group and layer not in wiring.norms]
    without_weights = [~_has_input_weights(plan, writer, leaves) for writer in writers]
    if len(writers) == 1 and wiring.norm_before(reader) is None:
        return np.where(without_weights[0], np.maximum(constants[writers[0]], 0), np.nan)
    # Of a sum only zeros are taken for a constant: ReLUs in between would need the order of the sums.
    zero = np.all([w & (constants[writer] == 0) for w, writer in zip(without_weights, writers, strict=True)], axis=0)
    norm = wiring.norm_before(reader)
    constant = np.zeros(len(zero)) if norm is None else np.maximum(constants[norm], 0)
    return np.where(zero, constant, np.nan)


def _absorbs_constants(wiring: Wiring, reader: str, leaves: Leaves) -> bool:
    without_padding = leaves[f"{reader}/kernel"].ndim == 2 or reader in wiring.unpadded
    return without_padding and f"{reader}/bias" in leaves and f"{reader}/scale" not in leaves


def _bias_corrections(
    wiring: Wiring, plan: CompactionPlan, leaves: Leaves, constants: Constants
) -> dict[str, np.ndarray]:
    found = {}
    for reader in plan.producers:
        removed = ~plan.kept[plan.producers[reader]]
        constant = np.where(removed, np.nan_to_num(_constant_of(wiring, reader, plan, leaves, constants)), 0)
        if constant.any() and _absorbs_constants(wiring, reader, leaves):
            kernel = leaves[f"{reader}/kernel"].astype(np.float64)
            found[reader] = constant @ kernel.reshape(-1, len(constant), kernel.shape[-1]).sum(0)
    return found


def _has_input_weights(plan: CompactionPlan, layer: str, leaves: Leaves) -> np.ndarray:
    """Outputs that have a weight other than zero in the inputs that stay: bool [outputs]."""
    kernel = leaves[f"{layer}/kernel"]
    inputs = kept_inputs(plan, layer, kernel.shape)
    return (kernel[..., inputs, :] != 0).reshape(-1, kernel.shape[-1]).any(0)


def kept_inputs(plan: CompactionPlan, layer: str, shape: tuple[int, ...]) -> np.ndarray:
    """Which inputs of a kernel of that shape stay, bool [inputs]: of a flattened image [height, width, channel]."""
    if layer not in plan.producers:
        return np.ones(shape[-2], bool)
    channels = plan.kept[plan.producers[layer]]
    return np.tile(channels, shape[-2] // len(channels))


def _is_read(group: str, plan: CompactionPlan, zeros: Leaves) -> np.ndarray:
    """Channels that are read by a weight which may be other than zero, in a filter that stays: bool [channels]."""
    width = len(plan.kept[group])
    found = np.zeros(width, bool)
    for reader in _readers_of(group, plan):
        reading = ~zeros[f"{reader}/kernel"]
        reading = reading[..., plan.kept[reader]] if reader in plan.kept else reading
        found |= reading.reshape(-1, width, reading.shape[-1]).any((0, 2))
    return found


def _readers_of(group: str, plan: CompactionPlan) -> list[str]:
    return [reader for reader, producer in plan.producers.items() if producer == group]


def _held_at_zero(leaves: Leaves, masks: chex.ArrayTree | None) -> dict[str, np.ndarray]:
    """True where a weight is zero and remains it, bool leaves by name."""
    if masks is None:
        return {name: np.zeros(leaf.shape, bool) for name, leaf in leaves.items()}
    return {name: (leaves[name] == 0) & ~np.asarray(keep) for name, keep in leaves_by_name(masks).items()}


def _width(group: str, leaves: Leaves) -> int:
    return int(leaves[f"{group}/kernel"].shape[-1])


def check_wiring(wiring: Wiring, leaves: Leaves) -> None:
    """Refuses a wiring that names other layers than there are, or readers that do not fit their producers."""
    named = {name for pair in wiring.reads for name in pair} - set(wiring.norms)
    missing = {name for name in named if f"{name}/kernel" not in leaves}
    missing |= {name for name in wiring.norms if f"{name}/scale" not in leaves}
    if missing:
        raise ValueError(
            f"reads names {', '.join(sorted(missing))}; expected layers with a kernel, of {', '.join(leaves)}."
        )
    for reader, producer in wiring.readers.items():
        inputs, outputs = leaves[f"{reader}/kernel"].shape[-2], _width(producer, leaves)
        if inputs % outputs:
            raise ValueError(
                f"{reader} has {inputs} inputs; expected a multiple of the {outputs} outputs of {producer}, which it "
                f"reads."
            )
