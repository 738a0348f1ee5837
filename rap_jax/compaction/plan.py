"""Which channels of a network count for nothing.

    plan = compaction_plan(model.wiring, params, masks)                      for training
    plan = compaction_plan(model.wiring, params, batch_stats=batch_stats)    for good
    plan.features       {"conv1": 4, "fc1": 64}: outputs left, where some are gone
    plan.carried        {"fc1": [64]}: to be added to biases; for good only

A channel (the output of a filter, or of a neuron of a dense layer) is removed, with the weights that read it, if

  it sends nothing    the weights of all layers that write it are zero and so is what they send then, and what a
                      BatchNorm behind a sum makes of it: see `sent_constants`; or it sends a constant that its readers
                      can take into their bias without error: dense layers, and convolutions without padding; or
  nobody reads it     all weights that would read it are zero.

What is removed leaves others without inputs or without readers, so both are asked until nothing changes. Channels that
add up in a residual network belong to all layers that write them, and go or stay together (see
`rap_jax.models.wiring`).

For good, the logits in evaluation mode stay the same. For training, so do those in training mode and all gradients:
masks say which zeros are held, since others grow again, and all that is beside the weights of a removed filter has to
be zero too; behind the ReLU it sends 0, and gets no gradient. Then at least one channel of each layer stays.

A column of a convolution is one place of the kernel in one channel. Where only some places of a channel are gone, the
convolution has no smaller form, and they stay as zeros.

Differs from masked training of the whole network: (1) weights that read removed outputs, or make outputs that nobody
reads, are not there, so they end as they began. Whole, they get no gradient either, but weight decay shrinks them; they
multiply zeros, or are multiplied by them, so the function is the same. (2) So do the BatchNorm statistics of removed
outputs; whole, they move to those of a constant.

Works on the host, on any tree with layers as in `rap_jax.pruning.layers`.

What a layer sends when nothing reaches it: the constant of each output, by layer, before the ReLU.

    constants = sent_constants(params, batch_stats)     in evaluation mode: bias, scale, shift and statistics
    constants = held_constants(params)                  in training: 0 where all of these are zero, or else NaN

For a BatchNorm that stands alone it is what that makes of zeros.
"""

import dataclasses
from collections.abc import Mapping

import chex
import numpy as np

from rap_jax.models.layers.batch_norm import BATCH_NORM_EPSILON
from rap_jax.models.wiring import Wiring
from rap_jax.pruning.layers import leaves_by_name

Constants = Mapping[str, np.ndarray]


def sent_constants(leaves: Mapping[str, np.ndarray], batch_stats: Mapping[str, np.ndarray]) -> Constants:
    """In evaluation mode, float64 [outputs].

    Args:
      leaves: params by name, such as `conv1/kernel`.
      batch_stats: statistics by name, such as `conv1/mean`.
    """
    found = {}
    for layer, width in _widths(leaves).items():
        value = np.asarray(leaves.get(f"{layer}/bias", np.zeros(width)), np.float64)
        if f"{layer}/scale" in leaves:
            factor, offset = evaluation_norm(layer, leaves, batch_stats)
            value = value * factor + offset
        found[layer] = value
    return found


def evaluation_norm(
    layer: str, leaves: Mapping[str, np.ndarray], batch_stats: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Factor and offset of a BatchNorm in evaluation mode, float64 [outputs]; a folded one has no statistics."""
    scale, shift = (leaves[f"{layer}/{name}"].astype(np.float64) for name in ("scale", "shift"))
    if f"{layer}/mean" not in batch_stats:
        return scale, shift
    mean, var = (batch_stats[f"{layer}/{name}"].astype(np.float64) for name in ("mean", "var"))
    factor = scale / np.sqrt(var + BATCH_NORM_EPSILON)
    return factor, shift - mean * factor


def held_constants(leaves: Mapping[str, np.ndarray]) -> Constants:
    """0 where all that lies beside the kernel is zero, NaN elsewhere: float64 [outputs]."""
    found = {}
    for layer, width in _widths(leaves).items():
        beside = [leaf for name, leaf in leaves.items() if name.rpartition("/")[0] == layer and leaf.shape == (width,)]
        zero = np.all([leaf == 0 for leaf in beside], axis=0) if beside else np.ones(width, bool)
        found[layer] = np.where(zero, 0.0, np.nan)
    return found


def _widths(leaves: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Layer -> number of its outputs."""
    return {name.rpartition("/")[0]: leaf.shape[-1] for name, leaf in leaves.items()}


Leaves = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What stays of a network.

    Attributes:
      producers: path of a layer -> path of one of the layers whose outputs it reads.
      kept: path of a layer whose outputs may go -> which of them stay, bool [outputs].
      carried: path of a layer -> what removed constants add to its bias, [outputs].
      norms: BatchNorms that stand alone, of which `kept` speaks too.
    """

    producers: Mapping[str, str]
    kept: Mapping[str, np.ndarray]
    carried: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    norms: tuple[str, ...] = ()

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
) -> Plan:
    """Finds the channels that can be removed, see above; the same weights and masks give the same plan.

    Args:
      wiring: see `Model.wiring`.
      params: weights, after a cut.
      masks: False where a weight is held at zero, bool tree like `params`; None if none is. For training only.
      batch_stats: statistics of BatchNorm, {} if there are none, to plan for good; None to plan for training.

    Raises:
      ValueError: the wiring names a layer that `params` does not have, or whose inputs are not the outputs of the
        other; for good: a layer of which nothing would be left, by name.
    """
    leaves = {name: np.asarray(leaf) for name, leaf in leaves_by_name(params).items()}
    _check(wiring, leaves)
    if batch_stats is None:
        return _plan(wiring, leaves, _held_at_zero(leaves, masks), held_constants(leaves), for_good=False)
    constants = sent_constants(leaves, {name: np.asarray(leaf) for name, leaf in leaves_by_name(batch_stats).items()})
    return _plan(wiring, leaves, {name: leaf == 0 for name, leaf in leaves.items()}, constants, for_good=True)


def _plan(wiring: Wiring, leaves: Leaves, silent: Leaves, constants: Constants, *, for_good: bool) -> Plan:
    plan = _whole(wiring, leaves)
    while True:
        # What a layer sends when nothing else reaches it takes in the constants of inputs that are gone.
        sent = {layer: constant + plan.carried.get(layer, 0.0) for layer, constant in constants.items()}
        kept = {}
        for group in dict.fromkeys(wiring.groups.values()):
            before = plan.kept[group]
            gone = _sends_nothing(wiring, group, plan, leaves, sent, for_good) | ~_is_read(group, plan, silent)
            kept[group] = before & ~gone
        vanished = [group for group, channels in kept.items() if not channels.any()]
        if vanished and for_good:
            raise _nothing_left(wiring, vanished)
        kept |= {group: _first(plan.kept[group]) for group in vanished}
        if all(np.array_equal(kept[group], plan.kept[group]) for group in kept):
            return plan
        plan = dataclasses.replace(plan, kept={layer: kept[group] for layer, group in wiring.groups.items()})
        if for_good:
            plan = dataclasses.replace(plan, carried=_carried(wiring, plan, leaves, sent))


def _whole(wiring: Wiring, leaves: Leaves) -> Plan:
    kept = {layer: np.ones(_width(group, leaves), bool) for layer, group in wiring.groups.items()}
    return Plan(wiring.readers, kept, norms=wiring.norms)


def _sends_nothing(
    wiring: Wiring, group: str, plan: Plan, leaves: Leaves, constants: Constants, for_good: bool
) -> np.ndarray:
    """Channels that send 0, or a constant that all readers can take into their biases: bool [channels]."""
    value = {reader: _sent(wiring, reader, plan, leaves, constants) for reader in _readers_of(group, plan)}
    found = np.ones(len(plan.kept[group]), bool)
    for reader, sent in value.items():
        exact = for_good and _takes_constants(wiring, reader, leaves)
        found &= ~np.isnan(sent) if exact else sent == 0
    return found if value else np.zeros_like(found)


def _sent(wiring: Wiring, reader: str, plan: Plan, leaves: Leaves, constants: Constants) -> np.ndarray:
    """What each channel sends to a reader if it is a constant, NaN if it is not: float [channels]."""
    group = plan.producers[reader]
    writers = [layer for layer, one in wiring.groups.items() if one == group and layer not in wiring.norms]
    silent = [~_has_weights(plan, writer, leaves) for writer in writers]
    if len(writers) == 1 and wiring.norm_before(reader) is None:
        return np.where(silent[0], np.maximum(constants[writers[0]], 0), np.nan)
    # In a sum only what is 0 everywhere is taken for a constant: ReLUs in between would need the order of the sums.
    zero = np.all([quiet & (constants[writer] == 0) for quiet, writer in zip(silent, writers, strict=True)], axis=0)
    norm = wiring.norm_before(reader)
    sent = np.zeros(len(zero)) if norm is None else np.maximum(constants[norm], 0)
    return np.where(zero, sent, np.nan)


def _takes_constants(wiring: Wiring, reader: str, leaves: Leaves) -> bool:
    whole = leaves[f"{reader}/kernel"].ndim == 2 or reader in wiring.unpadded
    return whole and f"{reader}/bias" in leaves and f"{reader}/scale" not in leaves


def _carried(wiring: Wiring, plan: Plan, leaves: Leaves, constants: Constants) -> dict[str, np.ndarray]:
    found = {}
    for reader in plan.producers:
        gone = ~plan.kept[plan.producers[reader]]
        sent = np.where(gone, np.nan_to_num(_sent(wiring, reader, plan, leaves, constants)), 0)
        if sent.any() and _takes_constants(wiring, reader, leaves):
            kernel = leaves[f"{reader}/kernel"].astype(np.float64)
            places = kernel.reshape(-1, len(sent), kernel.shape[-1]).sum(0)
            found[reader] = sent @ places
    return found


def _has_weights(plan: Plan, layer: str, leaves: Leaves) -> np.ndarray:
    """Outputs that have a weight other than zero in the inputs that stay: bool [outputs]."""
    kernel = leaves[f"{layer}/kernel"]
    inputs = kept_inputs(plan, layer, kernel.shape)
    return (kernel[..., inputs, :] != 0).reshape(-1, kernel.shape[-1]).any(0)


def kept_inputs(plan: Plan, layer: str, shape: tuple[int, ...]) -> np.ndarray:
    """Which inputs of a kernel of that shape stay, bool [inputs]: of a flattened image [height, width, channel]."""
    if layer not in plan.producers:
        return np.ones(shape[-2], bool)
    channels = plan.kept[plan.producers[layer]]
    return np.tile(channels, shape[-2] // len(channels))


def _is_read(group: str, plan: Plan, silent: Leaves) -> np.ndarray:
    """Channels that some weight reads which is not held at zero, in a filter that stays: bool [channels]."""
    width = len(plan.kept[group])
    found = np.zeros(width, bool)
    for reader in _readers_of(group, plan):
        reading = ~silent[f"{reader}/kernel"]
        reading = reading[..., plan.kept[reader]] if reader in plan.kept else reading
        found |= reading.reshape(-1, width, reading.shape[-1]).any((0, 2))
    return found


def _readers_of(group: str, plan: Plan) -> list[str]:
    return [reader for reader, producer in plan.producers.items() if producer == group]


def _held_at_zero(leaves: Leaves, masks: chex.ArrayTree | None) -> dict[str, np.ndarray]:
    """True where a weight is zero and remains it, bool leaves by name."""
    if masks is None:
        return {name: np.zeros(leaf.shape, bool) for name, leaf in leaves.items()}
    return {name: (leaves[name] == 0) & ~np.asarray(keep) for name, keep in leaves_by_name(masks).items()}


def _nothing_left(wiring: Wiring, vanished: list[str]) -> ValueError:
    layers = ", ".join(layer for layer, group in wiring.groups.items() if group in vanished)
    return ValueError(
        f"Nothing would be left of {layers}: all outputs are removed, or read by nobody; expected at least one of each "
        f"layer: prune less."
    )


def _first(kept: np.ndarray) -> np.ndarray:
    return np.arange(len(kept)) == kept.argmax()


def _width(group: str, leaves: Leaves) -> int:
    return int(leaves[f"{group}/kernel"].shape[-1])


def _check(wiring: Wiring, leaves: Leaves) -> None:
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
