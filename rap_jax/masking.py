"""Pruned weights stay at exactly zero: the last link of the optimizer chain.

Differs from the authors' code, which multiplies gradients by the mask before momentum and weight decay: (1) here the
finished update is masked, so neither can move a pruned weight; (2) the bias of a filter that is gone goes with it, and
so do the scale and the shift of its BatchNorm.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax


class MaskState(NamedTuple):
    """Attributes: masks: bool, the tree of the params; True where a weight may be other than zero."""

    masks: chex.ArrayTree


def keep_masked(masks: chex.ArrayTree) -> optax.GradientTransformationExtraArgs:
    """An optax transformation that must stand last: after `optax.apply_updates` masked-out weights are exactly 0.

    Where a mask is False the update becomes minus the weight, so a weight that is not yet zero becomes zero at once.

    Args:
      masks: bool tree with the structure and shapes of the params.
    """

    def init_fn(params: optax.Params) -> MaskState:
        chex.assert_trees_all_equal_shapes(masks, params)
        # A copy: the trainer donates its state, and the caller keeps its masks.
        return MaskState(jax.tree.map(jnp.copy, masks))

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        if params is None:
            raise ValueError("keep_masked needs the params: call tx.update(updates, state, params).")
        masked = jax.tree.map(lambda keep, update, w: jnp.where(keep, update, -w), state.masks, updates, params)
        return masked, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def apply_masks(masks: chex.ArrayTree, params: chex.ArrayTree) -> chex.ArrayTree:
    """The params with exact zeros where the masks are False."""
    return jax.tree.map(lambda keep, w: jnp.where(keep, w, jnp.zeros((), w.dtype)), masks, params)


def both(masks: chex.ArrayTree, other: chex.ArrayTree) -> chex.ArrayTree:
    """True where both trees of masks are: what survives two rounds of pruning."""
    return jax.tree.map(jnp.logical_and, masks, other)
