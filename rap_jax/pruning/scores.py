"""Masks by scores of one's own, one number per structure, in place of the magnitude of the weights.

    masks = masks_by_score(specs, params, {"conv1/kernel": scores})
    masks = random_masks(specs, params, jax.random.key(0))

Scores have the axes of their weights, of length 1 where a structure spans an axis: those of a kernel [H, W, Cin, Cout]
are [H, W, Cin, Cout] under `Irregular`, [1, 1, 1, Cout] under `Filter` and [H, W, Cin, 1] under `Column`.
Counts, budgets, ties, and what goes with a removed output are those of `specs.masks_of`."""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp

from rap_jax._runtime.arrays import at_least_float32
from rap_jax.pruning.layers import leaves_by_name, tree_by_name
from rap_jax.pruning.ownership import Specs, resolve_specs
from rap_jax.pruning.projections import Column, Filter, Spec
from rap_jax.pruning.specs import masks_of


def structure_axes(spec: Spec, num_axes: int) -> tuple[int, ...]:
    """The axes of weights that one structure spans."""
    if isinstance(spec, Filter):
        return tuple(range(spec.stack_axes or 0, num_axes - 1))
    return (num_axes - 1,) if isinstance(spec, Column) else ()


def structure_norms(spec: Spec, weights: jax.Array) -> jax.Array:
    """The norm of each structure, float32 or wider, in the shape of scores."""
    wide = at_least_float32(weights)
    axes = structure_axes(spec, weights.ndim)
    return jnp.sqrt(jnp.sum(wide * wide, axes, keepdims=True)) if axes else jnp.abs(wide)


def with_weights(params: chex.ArrayTree, weights: Mapping[str, jax.Array]) -> chex.ArrayTree:
    """The params with other weights of these names, each broadcast to the shape of the ones that it replaces."""
    leaves = leaves_by_name(params)
    others = {name: jnp.broadcast_to(array, leaves[name].shape) for name, array in weights.items()}
    return tree_by_name(params, leaves | others)


def masks_by_score(specs: Specs, params: chex.ArrayTree, scores: Mapping[str, jax.Array]) -> chex.ArrayTree:
    """As `specs.masks_of`, with the structures of largest |score| kept; of layers with one budget together as well.

    Args:
      specs: the sparsity sets.
      params: names and shapes alone count for weights with a spec.
      scores: of each of them, see above.

    Raises:
      ValueError: as `specs.masks_of`; scores that are NaN or infinite.
    """
    return masks_of(specs, with_weights(params, scores))


def random_masks(specs: Specs, params: chex.ArrayTree, key: jax.Array) -> chex.ArrayTree:
    """As `specs.masks_of`, with the structures that are kept drawn at random; those that are zero go first.

    So the masks of weights that were cut by this function keep what is left, with any key.

    Args:
      specs: the sparsity sets.
      params: the weights.
      key: typed key.

    Raises:
      ValueError: as `specs.masks_of`.
    """
    specs, leaves = resolve_specs(specs, params)
    scores = dict[str, jax.Array]()
    for number, (name, spec) in enumerate(specs.items()):
        norms = structure_norms(spec, leaves[name])
        drawn = jax.random.uniform(jax.random.fold_in(key, number), norms.shape, norms.dtype, minval=0.5)
        scores[name] = jnp.where(norms > 0, drawn, 0)
    return masks_by_score(specs, params, scores)
