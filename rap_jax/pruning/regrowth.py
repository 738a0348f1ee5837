"""Flying Bird: sparse from the first update on; every so often the smallest weights give their places to others.

After every `interval` updates each layer drops a share of its weights, the smallest ones, and as many places are drawn
at random among all that are free. The weights that grow there start at zero. The share falls by half a cosine over
the training:  share / 2 (1 + cos(pi step / num_steps)).

Differs from the authors' code (https://github.com/VITA-Group/Sparsity-Win-Robust-Generalization): (1) Exactly as many
grow as were dropped; theirs draws each place with a probability. (2) The first masks are those of the largest weights,
in the counts of the sparsity sets; theirs are drawn at random, with layer densities of their own. (3) The gradients of
masked weights are zero before the optimizer sees them; theirs masks momentum after it, which is the same but for the
weights that were dropped last. (4) Nothing is exchanged in the last interval, and no place is drawn whose gradient is
zero, as behind a dead unit: what has grown is trained. In theirs such weights stay zero, and more is pruned than was
asked for. (5) Flying Bird+, which changes the sparsity with the losses of training and validation, is left out: its
number of zeros is nothing that can be asked for. As in theirs, a place that was just emptied may be drawn, and keeps
its weight.

Source: Chen et al., "Sparsity Winning Twice: Better Robust Generalization from More Efficient Training", ICLR 2022,
https://arxiv.org/abs/2202.09844; the cosine is that of Evci et al., "Rigging the Lottery", 2020,
https://arxiv.org/abs/1911.11134."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax.pruning.layers import leaves_by_name
from rap_jax.pruning.masks import both, masked_updates
from rap_jax.pruning.ownership import Specs, resolve_specs
from rap_jax.pruning.projections import Column, Irregular, keep_largest
from rap_jax.pruning.scores import structure_axes, structure_norms, with_weights
from rap_jax.pruning.specs import complete_masks, masks_of


class RegrowthState(NamedTuple):
    """State of `drop_and_regrow`."""

    masks: chex.ArrayTree  # bool, tree of the params; False where a weight is zero now
    held: chex.ArrayTree | None  # False where a weight stays zero, bool tree of the params; None if none does
    num_steps: jax.Array  # updates so far, int32
    inner: optax.OptState


def drop_and_regrow(
    inner: optax.GradientTransformation,
    specs: Specs,
    *,
    interval: int,
    num_steps: int,
    share: float = 0.5,
    held: chex.ArrayTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains weights under masks whose places change; the count of each layer stays what the sparsity sets say.

    It has to be the whole chain: `inner` moves the weights. The first gradient is to be taken at
    `masks.apply_state_masks(state, params)`. `update(updates, state, params, *, key)` needs a typed key of the step.

    Args:
      inner: an optimizer with its learning rate and decay; extra arguments are passed on.
      specs: `Irregular` or `Column` sets. A filter of zeros gets no gradient through relu, so it could not grow.
      interval: updates from one exchange to the next.
      num_steps: updates in all, over which the share falls.
      share: of the weights of a layer (of its columns) that the first exchange drops, in (0, 1].
      held: bool tree like the params, False where a weight is zero already and stays so.

    Raises:
      ValueError: at once if a set is another one or has stacks of layers, or a number is none of those above; in
        `init`, as `specs.masks_of`; in `update` without params or key.
    """
    _check(specs, interval, num_steps, share)

    def init(params: optax.Params) -> RegrowthState:
        masks = masks_of(specs, params)
        kept = None if held is None else jax.tree.map(jnp.copy, held)
        masks = masks if kept is None else both(masks, kept)
        return RegrowthState(masks, kept, jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        key: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None or key is None:
            raise ValueError("drop_and_regrow needs params and a key: tx.update(updates, state, params, key=key).")
        masked = jax.tree.map(lambda keep, g: jnp.where(keep, g, jnp.zeros_like(g)), state.masks, updates)
        moves, inner_state = optax.with_extra_args_support(inner).update(masked, state.inner, params, **extra_args)
        step = state.num_steps + 1
        rate = share / 2 * (1 + jnp.cos(jnp.pi * step.astype(jnp.float32) / num_steps))
        is_due = (step % interval == 0) & (step + interval <= num_steps)
        weights = optax.apply_updates(params, masked_updates(state.masks, moves, params))
        exchanged = lambda: _exchanged(specs, weights, updates, state, rate, key)
        masks = jax.lax.cond(is_due, exchanged, lambda: state.masks)
        return masked_updates(masks, moves, params), RegrowthState(masks, state.held, step, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(specs: Specs, interval: int, num_steps: int, share: float) -> None:
    others = [f"{name}: {spec}" for name, spec in specs.items() if not isinstance(spec, Irregular | Column)]
    if others:
        raise ValueError(
            f"specs have {', '.join(others)}; expected Irregular or Column sets: a filter of zeros gets no gradient "
            f"through relu, so none could grow."
        )
    stacked = [name for name, spec in specs.items() if spec.stack_axes]
    if stacked:
        raise ValueError(f"{', '.join(stacked)} are stacks of layers; expected stack_axes=0.")
    if not 1 <= interval < num_steps:
        raise ValueError(f"interval is {interval!r}; expected 1 or more updates, and fewer than all {num_steps!r}.")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share!r}; expected a share in (0, 1].")


def _exchanged(
    specs: Specs,
    weights: optax.Params,
    gradients: optax.Updates,
    state: RegrowthState,
    rate: jax.Array,
    key: jax.Array,
) -> chex.ArrayTree:
    """The masks after an exchange."""
    specs, leaves = resolve_specs(specs, weights)
    masks, slopes = leaves_by_name(state.masks), leaves_by_name(gradients)
    held = {} if state.held is None else leaves_by_name(state.held)
    found = dict[str, jax.Array]()
    for number, (name, spec) in enumerate(specs.items()):
        axes, norms = structure_axes(spec, leaves[name].ndim), structure_norms(spec, leaves[name])
        open_places = held.get(name, True) & (slopes[name] != 0)
        there, free = (jnp.any(mask, axes, keepdims=True).ravel() for mask in (masks[name], open_places))
        kept = exchange(norms.ravel(), there, free, rate, jax.random.fold_in(key, number))
        found[name] = jnp.broadcast_to(kept.reshape(norms.shape), leaves[name].shape)
    # Weights that have just grown are zero, but their outputs are there.
    ones = with_weights(weights, {name: mask.astype(leaves[name].dtype) for name, mask in found.items()})
    after = complete_masks(specs, ones, found)
    return after if state.held is None else both(after, state.held)


def exchange(norms: jax.Array, there: jax.Array, free: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
    """Which structures are there after the smallest were dropped and as many drawn: bool [n], as many as before.

    Args:
      norms: of the structures, [n].
      there: bool [n], before.
      free: bool [n], places that can be drawn, whatever is there. Where they do not suffice, dropped ones stay.
      rate: share of those there that is dropped, rounded up.
      key: typed key.
    """
    count = there.sum(dtype=jnp.int32)
    dropped = jnp.ceil(rate * count.astype(jnp.float32)).astype(jnp.int32)
    survive = there & keep_largest(jnp.where(there, norms, -1), count - dropped)
    drawn = 1 + jax.random.uniform(key, norms.shape, norms.dtype)
    order = jnp.where(free & ~survive, drawn, jnp.where(there & ~survive, 0, -1).astype(norms.dtype))
    return survive | keep_largest(order, dropped)
