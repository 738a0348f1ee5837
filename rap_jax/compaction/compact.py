"""A network that is physically smaller, with the same logits.

    small = compact(model, params, batch_stats, masks)
    logits = small.model.logits(small.weights, images)

It is a network of the same class: it can be attacked, trained, evaluated and compacted again."""

import functools
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from rap_jax.compaction.plan import CompactionPlan, compaction_plan
from rap_jax.compaction.resize import shrink
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.pruning.layers import leaves_by_name


class CompactNetwork(NamedTuple):
    """A smaller network and its weights, as NumPy arrays."""

    model: Model
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    masks: chex.ArrayTree | None = None  # False where a weight is held at zero; None if none is

    @property
    def weights(self) -> Weights:
        """Params and statistics."""
        return Weights(self.params, self.batch_stats)


def compact(
    model: Model, params: chex.ArrayTree, batch_stats: chex.ArrayTree, masks: chex.ArrayTree | None = None
) -> CompactNetwork:
    """Removes the channels that cannot affect the logits in evaluation mode, see `plan`.

    Args:
      model: of `create_model`.
      params, batch_stats: after a cut.
      masks: False where a weight is held at zero; the result has the masks of the smaller network, for a retrain.

    Returns:
      The smaller network; the same one if nothing is removable.

    Raises:
      ValueError: a layer would vanish; it is named. The model is not of `create_model`, or the weights are not those
        of such a network. Weights are NaN or infinite. A mask is missing, not bool, of another shape, or masks a weight
        that is not zero.
    """
    check_weights(model, params, batch_stats)
    _check_finite({**leaves_by_name(params), **leaves_by_name(batch_stats)})
    _check_masks(params, masks)
    plan = compaction_plan(model.wiring, params, batch_stats=batch_stats)
    small = shrink(plan, params)
    return CompactNetwork(
        model=model.replace(features={**model.features, **plan.features}),
        params=_corrected(plan, small),
        batch_stats=shrink(plan, batch_stats),
        masks=None if masks is None else shrink(plan, masks),
    )


def _corrected(plan: CompactionPlan, small: Any) -> Any:
    """The weights with the constants of removed channels added to the biases of their readers."""
    for reader, correction in plan.bias_corrections.items():
        layer = functools.reduce(operator.getitem, reader.split("/"), small)
        kept = correction[plan.kept[reader]] if reader in plan.kept else correction
        layer["bias"] = (layer["bias"] + kept).astype(layer["bias"].dtype)
    return small


def check_weights(model: Any, params: chex.ArrayTree, batch_stats: chex.ArrayTree) -> None:
    """Refuses a model that is none, and weights that are not those of such a network, by name and shape."""
    if not isinstance(model, Model):
        raise ValueError(f"model is {model!r}; expected a Model, as create_model returns it.")
    for tree, expected in zip((params, batch_stats), jax.eval_shape(model.init, jax.random.key(0)), strict=True):
        found, wanted = ({name: np.shape(leaf) for name, leaf in leaves_by_name(t).items()} for t in (tree, expected))
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                shapes = f"shape of {name} is {found.get(name)}; expected {wanted.get(name)}"
                raise ValueError(f"{shapes}, as init of the model makes it.")


def _check_finite(leaves: Mapping[str, Any]) -> None:
    """Compaction assumes 0 * x == 0, so all weights must be finite."""
    for name, leaf in leaves.items():
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise ValueError(f"{name} has NaN or infinite numbers; expected finite ones.")


def _check_masks(params: chex.ArrayTree, masks: chex.ArrayTree | None) -> None:
    if masks is None:
        return
    kept, weights = leaves_by_name(masks), leaves_by_name(params)
    if kept.keys() != weights.keys():
        missing, surplus = sorted(weights.keys() - kept.keys()), sorted(kept.keys() - weights.keys())
        raise ValueError(f"The masks lack {missing} and have {surplus} besides; expected one for each weight.")
    for name, leaf in weights.items():
        shape, kind = np.shape(kept[name]), np.asarray(kept[name]).dtype
        if shape != np.shape(leaf) or kind != np.bool_:
            raise ValueError(f"The masks have {name} {kind}{list(shape)}; expected bool{list(np.shape(leaf))}.")
        if np.any(np.asarray(leaf)[~np.asarray(kept[name])]):
            raise ValueError(f"{name} has weights other than zero where the masks hold it at zero; expected zeros.")
