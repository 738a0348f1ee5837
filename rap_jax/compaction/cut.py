"""The cut: sets the weights outside their sparsity sets to zero.

    masks = masks_of_cut(specs, model, weights.params)
    weights = cut(specs, model, weights)

The bias, scale and shift of a removed filter are removed with it. A BatchNorm behind a sum belongs to no single filter.
Where all filters of a channel are removed it is unwritten: it would still send the constant relu(shift), which no bias
can replace because of the zeros around an image. Masked with the filters it sends 0, the retrain makes up for the
constant, and compaction can remove the channel.
"""

import chex
import jax
import jax.numpy as jnp

from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.models.wiring import Wiring
from rap_jax.pruning.layers import leaves_by_name, tree_by_name
from rap_jax.pruning.masks import apply_masks
from rap_jax.pruning.scores import random_masks
from rap_jax.pruning.specs import Specs, masks_of


def mask_unwritten_batch_norms(wiring: Wiring, params: chex.ArrayTree, masks: chex.ArrayTree) -> chex.ArrayTree:
    """The masks, False also at scale and shift of a BatchNorm behind a sum whose channel no filter writes any more.

    Masks are False where a weight is held at zero, bool trees like `params`, which are those before or after the cut.
    """
    weights, keep = leaves_by_name(params), leaves_by_name(masks)
    written: dict[str, jax.Array] = {}
    for layer, group in wiring.groups.items():
        if layer not in wiring.norms:
            kernel = keep[f"{layer}/kernel"] & (weights[f"{layer}/kernel"] != 0)
            alive = kernel.reshape(-1, kernel.shape[-1]).any(0)
            written[group] = written.get(group, jnp.zeros_like(alive)) | alive
    held = {f"{norm}/{leaf}": written[wiring.groups[norm]] for norm in wiring.norms for leaf in ("scale", "shift")}
    return tree_by_name(masks, keep | {name: keep[name] & alive for name, alive in held.items()})


def masks_of_cut(specs: Specs, model: Model, params: chex.ArrayTree, key: jax.Array | None = None) -> chex.ArrayTree:
    """False where the cut makes a weight zero, bool tree like `params`, which are those before the cut.

    Args:
      key: draws at random what is kept (`scores.random_masks`), in place of the projection.

    Raises:
      ValueError: see `specs.masks_of`.
    """
    masks = masks_of(specs, params) if key is None else random_masks(specs, params, key)
    return mask_unwritten_batch_norms(model.wiring, params, masks)


def cut(specs: Specs, model: Model, weights: Weights, key: jax.Array | None = None) -> Weights:
    """The weights, projected on their sparsity sets; arguments and errors as of `masks_of_cut`."""
    return weights._replace(params=apply_masks(masks_of_cut(specs, model, weights.params, key), weights.params))
