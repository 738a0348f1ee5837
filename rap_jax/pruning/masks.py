"""Pruned weights stay at exactly zero: the last link of the optimizer chain; and zeros, counted.

Sparsity is counted from the weights themselves, never from what was asked for.

Differs from the authors' code, which multiplies gradients by the mask before momentum and weight decay: (1) here the
finished update is masked, so neither can move a pruned weight; (2) the bias of a filter that is gone goes with it, and
so do the scale and the shift of its BatchNorm.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rap_jax.pruning.layers import arrays_by_name, is_kernel, is_weight, leaves_by_name, names_left_out, tree_by_name
from rap_jax.pruning.ownership import (
    Specs,
    check_stack,
    has_clear_outputs,
    outputs_of,
    owned,
    resolve_specs,
    specs_of_owners,
)
from rap_jax.pruning.projections import check_finite, zeroed


class MaskState(NamedTuple):
    """State of `keep_masked`."""

    masks: chex.ArrayTree  # bool, the tree of the params; True where a weight may be other than zero


def keep_masked(masks: chex.ArrayTree) -> optax.GradientTransformationExtraArgs:
    """An optax transformation that must stand last: after `optax.apply_updates` masked-out weights are exactly 0.

    Where a mask is False the update becomes minus the weight, so a weight that is not yet zero becomes zero at once; a
    wrapper that leaves an update out, as `optax.MultiSteps` does, leaves such a weight out too until the next one. An
    update keeps its dtype if that is wider than the one of its weight, and else has the weight's, whose negative it
    could not hold.

    Args:
      masks: bool tree, [*shape] of the params. What counts are the names of its leaves: it may be a plain dict where
        the params are an `nnx.State`, and `optax.masked` may hide some of the params.

    Raises:
      ValueError: in `init` if a weight has no mask, or one of another shape or dtype, or a mask no weight; in `update`
        without params.
    """

    def init_fn(params: optax.Params) -> MaskState:
        # A copy: the trainer donates its state, and the caller keeps its masks.
        return MaskState(jax.tree.map(jnp.copy, _masks_like(params, masks)))

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        if params is None:
            raise ValueError("keep_masked needs the params: call tx.update(updates, state, params).")
        return masked_updates(state.masks, updates, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _masks_like(params: chex.ArrayTree, masks: chex.ArrayTree) -> chex.ArrayTree:
    """The masks in the tree of the params, leaf by leaf of the same name, without those that `optax.masked` hides."""
    by_name, weights, hidden = leaves_by_name(masks), arrays_by_name(params), names_left_out(params)
    # `optax.masked` hides single leaves, or whole branches of the tree.
    is_hidden = lambda name: any(name == node or name.startswith(f"{node}/") for node in hidden)
    surplus = [name for name in sorted(by_name.keys() - weights.keys()) if not is_hidden(name)]
    if surplus:
        raise ValueError(
            f"The masks have {', '.join(surplus)}; expected names of {', '.join(weights)}. For a part of the tree take "
            f"masks_of(specs, tree) of that part, or let keep_masked be the outermost and last in the chain."
        )
    for name, leaf in weights.items():
        _check_mask(name, by_name.get(name), leaf.shape)
    return tree_by_name(params, by_name)


def _check_mask(name: str, mask: Any, shape: tuple[int, ...]) -> None:
    is_array = hasattr(mask, "dtype") and hasattr(mask, "shape")
    found = f"{mask.dtype}{list(mask.shape)}" if is_array else "missing" if mask is None else repr(mask)
    if found != f"bool{list(shape)}":
        raise ValueError(f"The mask of {name} is {found}; expected bool{list(shape)}, see specs.masks_of.")


def masked_updates(masks: chex.ArrayTree, updates: optax.Updates, params: optax.Params) -> optax.Updates:
    """The updates, minus the weight where a mask is False; all three are trees like the params."""
    return jax.tree.map(_masked, masks, updates, params)


def _masked(keep: jax.Array, update: jax.Array, weights: jax.Array) -> jax.Array:
    dtype = max(weights.dtype, update.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.where(keep, update.astype(dtype), -weights.astype(dtype))


def apply_masks(masks: chex.ArrayTree, params: chex.ArrayTree) -> chex.ArrayTree:
    """The params with exact zeros where the masks are False; NaN stays NaN, to be seen.

    Args:
      masks: as for `keep_masked`.

    Raises:
      ValueError: a weight has no mask, or one of another shape or dtype, or a mask no weight.
    """
    return jax.tree.map(zeroed, _masks_like(params, masks), params)


def apply_state_masks(opt_state: chex.ArrayTree, params: chex.ArrayTree) -> chex.ArrayTree:
    """The params with exact zeros where masks in the state of an optimizer are False.

    Every method that prunes while it trains has its masks in the state from `init` on, as `state.masks`.

    Raises:
      ValueError: as `apply_masks`.
    """
    has_masks: Callable[[Any], bool] = lambda node: hasattr(node, "masks")
    for node in jax.tree.leaves(opt_state, is_leaf=has_masks):
        params = apply_masks(node.masks, params) if has_masks(node) else params
    return params


def both(masks: chex.ArrayTree, other: chex.ArrayTree) -> chex.ArrayTree:
    """True where both trees of masks are: what survives two rounds of pruning.

    Raises:
      ValueError: the masks are not bool, or differ in their names or shapes.
    """
    masks = _masks_like(masks, masks)
    return jax.tree.map(jnp.logical_and, masks, _masks_like(masks, other))


def count_sparsity(params: chex.ArrayTree, *, specs: Specs | None = None) -> dict[str, Any]:
    """Zeros per kernel and overall, ready for JSON.

    Args:
      specs: the sparsity sets, where they name weights that are not called `kernel`, or what belongs to them elsewhere
        in the tree.

    Returns:
      Counts: `{"layers": {"conv1/kernel": counts, ...}, "overall": counts}`, where the counts are `size`, `zeros`,
      `sparsity` and `leftovers`, and of a layer `filters`, `filters_kept`, `columns` and `columns_kept` too. `size`
      counts weights; a filter (last axis) or a column (all other axes) is kept if any of its weights is not zero.
      Biases and BatchNorm do not count, but `leftovers` are those of them that are not zero though their filter is:
      constants that a removed filter would go on sending, 0 after a cut. Filters and columns are None where the outputs
      lie on several axes, or no spec tells a stack of layers. A share of no weights at all is 0.

    Raises:
      ValueError: a weight is NaN or infinite, or may be a stack of layers; weights have inputs and outputs, but none of
        them is named `kernel` or by a spec.
    """
    named, leaves = resolve_specs({} if specs is None else specs, params)
    by_owner = specs_of_owners(named, leaves)
    weights = [name for name, leaf in leaves.items() if is_kernel(name) or (name in by_owner and is_weight(name, leaf))]
    _refuse_other_names(weights, leaves)
    layers = {}
    for name in weights:
        spec = by_owner.get(name)
        if specs is None:
            check_stack(name, spec, leaves)
        for counted in (name, *owned(name, spec, leaves)):
            check_finite(counted, leaves[counted])
        others = [np.asarray(leaves[other]) for other in owned(name, spec, leaves)]
        layers[name] = _count(np.asarray(leaves[name]), others, len(outputs_of(name, spec, leaves)) - 1)
        if not has_clear_outputs(name, spec, leaves):
            layers[name] |= dict.fromkeys(("filters", "filters_kept", "columns", "columns_kept"))
    size, zeros, leftovers = (sum(layer[key] for layer in layers.values()) for key in ("size", "zeros", "leftovers"))
    overall = {"size": size, "zeros": zeros, "sparsity": _share(zeros, size), "leftovers": leftovers}
    return {"layers": layers, "overall": overall}


def _refuse_other_names(weights: list[str], leaves: dict[str, Any]) -> None:
    others = [name for name, leaf in leaves.items() if is_weight(name, leaf)]
    if others and not weights:
        raise ValueError(
            f"No weights are named kernel, but {', '.join(others)} have inputs and outputs; expected "
            f"count_sparsity(params, specs=specs) with the specs of those that count."
        )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _count(kernel: np.ndarray, owned_leaves: list[np.ndarray], stack_axes: int) -> dict[str, Any]:
    layers = (kernel != 0).reshape(*kernel.shape[:stack_axes], -1, kernel.shape[-1])
    filters = layers.any(-2)
    zeros = int(layers.size - layers.sum())
    per_output = [values.reshape(*filters.shape[:-1], -1, filters.shape[-1]) for values in owned_leaves]
    return {
        "size": int(layers.size),
        "zeros": zeros,
        "sparsity": _share(zeros, layers.size),
        "filters": int(filters.size),
        "filters_kept": int(filters.sum()),
        "columns": layers.size // kernel.shape[-1],
        "columns_kept": int(layers.any(-1).sum()),
        "leftovers": sum(int(np.count_nonzero((values != 0) & ~filters[..., None, :])) for values in per_output),
    }
