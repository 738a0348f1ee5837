"""What a layer sends when nothing reaches it: the constant of each output, by layer, before the ReLU.

    constants = sent_constants(params, batch_stats)     in evaluation mode: bias, scale, shift and statistics
    constants = held_constants(params)                  in training: 0 where all of these are zero, or else NaN

For a BatchNorm that stands alone it is what that makes of zeros.
"""

from collections.abc import Mapping

import numpy as np

from rap_jax.layers import BATCH_NORM_EPSILON

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
