"""BatchNorm made part of the convolution or dense layer before it, for inference.

    small = fold_batch_norm(model, params, batch_stats)

In evaluation mode a BatchNorm is a factor and an offset per channel. Behind a kernel they go into it and its bias;
one that stands alone (WideResNet has them behind sums) keeps them as its scale and shift. The logits are the same
up to rounding; what is left can be trained on, without normalisation.
"""

import chex
import numpy as np

from rap_jax.compaction.compact import CompactNetwork, check_weights
from rap_jax.compaction.plan import inference_norm, numpy_by_name
from rap_jax.models import Model


def fold_batch_norm(
    model: Model, params: chex.ArrayTree, batch_stats: chex.ArrayTree, masks: chex.ArrayTree | None = None
) -> CompactNetwork:
    """The same network without statistics.

    Args:
      model: of `create_model`.
      params, batch_stats: its weights.
      masks: bool tree like `params`; those of kernels and biases stay.

    Raises:
      ValueError: the model cannot be made again, or the weights are not those of such a network.
    """
    check_weights(model, params, batch_stats)
    folded = model.replace(folded=True)
    leaves, statistics = numpy_by_name(params), numpy_by_name(batch_stats)
    for layer in dict.fromkeys(name.rpartition("/")[0] for name in statistics):
        factor, offset = inference_norm(layer, leaves, statistics)
        found = _folded(layer, leaves, factor, offset)
        for name in ("scale", "shift"):
            del leaves[f"{layer}/{name}"]
        leaves |= {f"{layer}/{name}": leaf.astype(np.float32) for name, leaf in found.items()}
    return CompactNetwork(folded, _tree(leaves), {}, None if masks is None else _tree(_masks(leaves, masks)))


def _folded(layer: str, leaves: dict[str, np.ndarray], factor: np.ndarray, offset: np.ndarray) -> dict[str, np.ndarray]:
    if f"{layer}/kernel" not in leaves:
        return {"scale": factor, "shift": offset}
    bias = leaves.get(f"{layer}/bias", np.zeros(len(factor)))
    kernel = leaves[f"{layer}/kernel"] * factor  # outputs come last, in a convolution and in a dense layer
    return {"kernel": kernel, "bias": bias * factor + offset}


def _masks(leaves: dict[str, np.ndarray], masks: chex.ArrayTree) -> dict[str, np.ndarray]:
    """A new bias is held at zero where the shift was, which is with its filter."""
    before = numpy_by_name(masks)
    shifts = {name.removesuffix("shift") + "bias": keep for name, keep in before.items() if name.endswith("/shift")}
    return {name: before[name] if name in before else shifts[name] for name in leaves}


def _tree(leaves: dict[str, np.ndarray]) -> dict[str, chex.ArrayTree]:
    """Nested dicts of leaves by name."""
    tree: dict[str, chex.ArrayTree] = {}
    for name, leaf in leaves.items():
        *layers, last = name.split("/")
        branch = tree
        for layer in layers:
            branch = branch.setdefault(layer, {})
        branch[last] = leaf
    return tree
