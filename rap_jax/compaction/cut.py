"""The cut: sets the weights outside their sparsity sets to zero.

    masks = masks_of_cut(specs, model, weights.params)
    weights = cut(specs, model, weights)
    count = count_left(specs, model, weights)     for layer budgets

The bias, scale and shift of a removed filter are removed with it. A BatchNorm behind a sum belongs to no single filter.
Where all filters of a channel are removed it is unwritten: it would still send the constant relu(shift), which no bias
can replace because of the zeros around an image. Masked with the filters it sends 0, the retrain makes up for the
constant, and compaction can remove the channel.
"""

from collections.abc import Mapping
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rap_jax.compaction.multiply_adds import multiply_adds_per_weight
from rap_jax.compaction.plan import check_wiring, numpy_by_name
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.models.wiring import Wiring
from rap_jax.pruning.budgets import Count, best_first, count_weights
from rap_jax.pruning.layers import is_kernel, leaves_by_name, tree_by_name
from rap_jax.pruning.masks import apply_masks
from rap_jax.pruning.projections import BatchNormFilter, Filter
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


def count_left(
    specs: Specs, model: Model, weights: Weights, *, of: Literal["parameters", "multiply_adds"] = "parameters"
) -> Count:
    """Counts what a cut and a compaction leave, by the structures that each layer keeps, for `layer_budgets`.

    Of filters it counts the weights of all kernels that are not zero: a removed filter takes the weights that read it
    along, where no other layer writes to its channel. Of other structures it counts the weights in them. Biases and
    BatchNorm do not count.

    Args:
      specs: the layers that are pruned; all by filters, or none of them.
      weights: before the cut.
      of: multiply-adds are those of one image.
    """
    uses = {name: 1 for name in leaves_by_name(weights.params) if is_kernel(name)}
    if of == "multiply_adds":
        plain = model if model.remake is None else model.replace(implementation="xla")
        logits = lambda params, images: plain.logits(Weights(params, weights.batch_stats), images)
        uses = multiply_adds_per_weight(logits, weights.params, (1, *model.input_shape))
    if all(isinstance(spec, Filter | BatchNormFilter) for spec in specs.values()):
        return _count_filters(specs, model.wiring, weights.params, uses)
    return count_weights(specs, weights.params, uses)


def _count_filters(specs: Specs, wiring: Wiring, params: chex.ArrayTree, uses: Mapping[str, int]) -> Count:
    leaves, producers = numpy_by_name(params), wiring.readers
    check_wiring(wiring, leaves)
    kernels = {name.removesuffix("/kernel"): leaf for name, leaf in leaves.items() if is_kernel(name)}
    order = {name.rpartition("/")[0]: best_first(spec, leaves[name])[0] for name, spec in specs.items()}
    uses_of = dict[str, np.ndarray]()  # of what lies between an input channel and an output, [channels, outputs]
    for layer, kernel in kernels.items():
        width = kernels[producers[layer]].shape[-1] if layer in producers else kernel.shape[-2]
        uses_of[layer] = (kernel != 0).reshape(-1, width, kernel.shape[-1]).sum(0) * uses[f"{layer}/kernel"]

    def count(kept: Mapping[str, int]) -> int:
        written = {layer: numbers.any(0) for layer, numbers in uses_of.items()}
        for name, number in kept.items():
            layer = name.rpartition("/")[0]
            written[layer] = written[layer] & (np.argsort(order[layer]) < number)
        read = {layer: np.ones(len(numbers), bool) for layer, numbers in uses_of.items()}
        for layer, group in producers.items():
            writers = [one for one, other in wiring.groups.items() if other == group and one not in wiring.norms]
            read[layer] = np.any([written[one] for one in writers], axis=0)
        return sum(int(numbers[np.ix_(read[layer], written[layer])].sum()) for layer, numbers in uses_of.items())

    return count
