"""TwinRep: weights as products of two factors, cut once while they are trained.

    w = b * a, one factor beside each weight; under `Filter` w = b A, A [outputs, outputs]

Both factors are moved by the optimizer, with the same decay: as the least of |a|^2 + |b|^2 for a given product is 2
|w|, the decay acts on the weights as an L1 norm and drives them apart. After so many updates the products are
projected on the sparsity sets, once; then the masks stay. The params are the products, so nothing is left to multiply
at the end.

Differs from the authors' code (https://github.com/UCAS-LCH/Twin-Rep): (1) The factors start from the weights at hand:
b = sign(w) sqrt|w| and a = sqrt|w|, which has the least decay for this product, and b = w, A = 1 for filters; theirs
are drawn at random, and the network is trained from scratch. (2) The threshold is that of the sparsity sets; theirs
is one for all layers, which is the budget `global` here. (3) Exactly so many structures stay; theirs keeps those not
below a threshold. (4) A removed filter takes bias, scale and shift along.

Source: Li, Shen, Jiang and Zhang, "Learning Adversarially Robust Sparse Networks via Weight Reparameterization", AAAI
2023."""

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax.pruning.latent import LatentState, train_latent
from rap_jax.pruning.layers import leaves_by_name, tree_by_name
from rap_jax.pruning.ownership import Specs, resolve_specs
from rap_jax.pruning.projections import Filter, Spec
from rap_jax.pruning.specs import masks_of


def factorise(
    inner: optax.GradientTransformation,
    specs: Specs,
    *,
    prune_step: int,
    held: chex.ArrayTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`inner` moves two factors of each weight with a spec, and all other params; see `train_latent`, which this is.

    Args:
      inner: an optimizer with its learning rate and decay; the decay is that of both factors.
      specs: the sparsity sets. Under `Filter` a kernel is the product with a matrix, under the others of its numbers.
      prune_step: updates after which the products are cut; from then on the masks in the state are those of the cut.
      held: bool tree like the params, False where a weight is zero already and stays so.

    Raises:
      ValueError: `prune_step` is below 1; in `init`, as `specs.masks_of`.
    """
    if prune_step < 1:
        raise ValueError(f"prune_step is {prune_step!r}; expected 1 or more updates before the cut.")

    def init(params: optax.Params) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        found, leaves = resolve_specs(specs, params)
        masks_of(specs, params)  # refuses what cannot be ranked
        pairs = {name: _factors(spec, leaves[name]) for name, spec in found.items()}
        firsts = leaves | {name: first for name, (first, _) in pairs.items()}
        seconds = {name: pairs[name][1] if name in pairs else optax.MaskedNode() for name in leaves}
        return {"first": tree_by_name(params, firsts), "second": tree_by_name(params, seconds)}, ()

    def products(state: LatentState) -> optax.Params:
        found, masks = resolve_specs(specs, state.masks)
        values, seconds = (leaves_by_name(state.latent[name]) for name in ("first", "second"))
        values |= {name: _product(found[name], values[name], second) for name, second in seconds.items()}
        return tree_by_name(
            state.masks, {name: values[name] * mask.astype(values[name].dtype) for name, mask in masks.items()}
        )

    def advance(state: LatentState, params: optax.Params) -> LatentState:
        del params
        cut = lambda: masks_of(specs, products(state))
        return state._replace(masks=jax.lax.cond(state.num_steps == prune_step, cut, lambda: state.masks))

    return train_latent(inner, init_fn=init, effective_fn=products, advance_fn=advance, held=held)


def _factors(spec: Spec, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    if isinstance(spec, Filter):
        stack, outputs = weights.shape[: spec.stack_axes or 0], weights.shape[-1]
        return weights, jnp.broadcast_to(jnp.eye(outputs, dtype=weights.dtype), (*stack, outputs, outputs))
    root = jnp.sqrt(jnp.abs(weights))
    return jnp.sign(weights) * root, root


def _product(spec: Spec, first: jax.Array, second: jax.Array) -> jax.Array:
    """w, shape of `first`; kernels [*stack, ..., outputs] are mixed along their outputs."""
    if not isinstance(spec, Filter):
        return first * second
    flat = first.reshape(*second.shape[:-2], -1, first.shape[-1])
    return jnp.matmul(flat, second, precision=jax.lax.Precision.HIGHEST).reshape(first.shape)
