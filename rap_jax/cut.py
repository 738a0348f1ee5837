"""The cut: what pruning takes out of a network, at once and for good.

    masks = masks_of_cut(specs, model, weights.params)
    weights = cut(specs, model, weights)

All that belongs to a removed filter goes with it: its bias, scale and shift, and a BatchNorm behind a sum where no
filter is left to write its channel.
"""

import chex

from rap_jax.compaction import hold_orphans
from rap_jax.masking import apply_masks
from rap_jax.models import Model
from rap_jax.specs import Specs, masks_of
from rap_jax.state import Weights


def masks_of_cut(specs: Specs, model: Model, params: chex.ArrayTree) -> chex.ArrayTree:
    """False where the cut makes a weight zero, bool tree like `params`, which are those before the cut.

    Raises:
      ValueError: see `specs.masks_of`.
    """
    return hold_orphans(model.wiring, params, masks_of(specs, params))


def cut(specs: Specs, model: Model, weights: Weights) -> Weights:
    """Zeros for what the sparsity sets do not hold; raises as `masks_of_cut` does."""
    return weights._replace(params=apply_masks(masks_of_cut(specs, model, weights.params), weights.params))
