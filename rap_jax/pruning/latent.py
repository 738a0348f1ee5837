"""Training of weights through variables behind them, as one optax transformation around another.

The params are at every step what the network computes with, p = f(v, m): a function of latent variables v, such as
learned scores or the factors of a product, and of masks m. A gradient at p is pulled back to v, the inner optimizer
moves v, and the update leads from the old p to the new one. A training step needs to know nothing of it.

`apply_updates` adds p' - p to p, so p is f(v, m) up to one rounding; where a mask is False it is exactly zero."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax.pruning.masks import both


class LatentState(NamedTuple):
    """State of `train_latent`; trees like the params hide leaves without a variable as `optax.MaskedNode`."""

    masks: chex.ArrayTree  # bool, tree of the params; False where a weight is zero now
    latent: chex.ArrayTree  # what the inner optimizer moves
    fixed: chex.ArrayTree  # what it does not move
    held: chex.ArrayTree | None  # False where a weight stays zero, bool tree of the params; None if none does
    num_steps: jax.Array  # updates so far, int32
    inner: optax.OptState


def train_latent(
    inner: optax.GradientTransformation,
    *,
    init_fn: Callable[[optax.Params], tuple[chex.ArrayTree, chex.ArrayTree]],
    effective_fn: Callable[[LatentState], optax.Params],
    advance_fn: Callable[[LatentState, optax.Params], LatentState],
    penalty_fn: Callable[[LatentState], jax.Array] | None = None,
    held: chex.ArrayTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A transformation whose inner one moves latent variables.

    It has to be the whole chain: what scales gradients or moves weights goes into `inner`. The first gradient is to be
    taken at `masks.apply_state_masks(state, params)`; the first update leads to f(v, m) from wherever the params are.

    Args:
      inner: any chain; it sees the tree of latent variables and their gradients. Extra arguments are passed on.
      init_fn: params -> (latent, fixed).
      effective_fn: state -> p, differentiable in `latent`, zero where the masks are False.
      advance_fn: (state, params) -> the state with new masks, or `fixed`, after each update; also called at the start,
        with masks that are all True. Of the params names and shapes count.
      penalty_fn: state -> a scalar that is added to the loss.
      held: masks of weights that stay zero, as for `keep_masked`.
    """
    inner = optax.with_extra_args_support(inner)

    def advance(state: LatentState, params: optax.Params) -> LatentState:
        state = advance_fn(state, params)
        return state if state.held is None else state._replace(masks=both(state.masks, state.held))

    def init(params: optax.Params) -> LatentState:
        latent, fixed = jax.tree.map(jnp.copy, init_fn(params))
        masks = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
        kept = None if held is None else jax.tree.map(jnp.copy, held)
        return advance(LatentState(masks, latent, fixed, kept, jnp.zeros((), jnp.int32), inner.init(latent)), params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("Latent variables need the params: call tx.update(updates, state, params).")
        _, pull_back = jax.vjp(lambda latent: effective_fn(state._replace(latent=latent)), state.latent)
        (gradients,) = pull_back(jax.tree.map(lambda update, w: update.astype(w.dtype), updates, params))
        if penalty_fn is not None:
            extra = jax.grad(lambda latent: penalty_fn(state._replace(latent=latent)))(state.latent)
            gradients = jax.tree.map(jnp.add, gradients, extra)
        moves, inner_state = inner.update(gradients, state.inner, state.latent, **extra_args)
        latent = optax.apply_updates(state.latent, moves)
        state = advance(state._replace(latent=latent, inner=inner_state, num_steps=state.num_steps + 1), params)
        return jax.tree.map(jnp.subtract, effective_fn(state), params), state

    return optax.GradientTransformationExtraArgs(init, update)
