"""From layer-name patterns to one sparsity set per weight: `{"conv1/kernel": Filter(0.5), ...}`.

A spec is static, so the mapping is a plain dict beside the params, keyed by a weight's path; functions that work on
a whole tree of params take it as an argument. A `BatchNormFilter` is keyed by its scale, `conv1/scale`.

The leaves that belong to an output (see `rap_jax.pruning.layers`) are removed with it. Under `Filter` ADMM pulls all of
them to zero with the kernel: a removed filter that kept its bias or shift would still send a constant, and BatchNorm
divides a vanishing filter by its own vanishing deviation, so that without the scale nothing would vanish from the
output before the cut. Under `BatchNormFilter` ADMM pulls scale, shift and bias, and the kernel is removed at the cut
only. The kernel alone decides which outputs a `Filter` keeps, the scale alone which a `BatchNormFilter` keeps.

A filter may have more leaves elsewhere, as with a BatchNorm of Flax: `Filter(0.5, belongs={"BatchNorm_0/scale",
"BatchNorm_0/bias"})`, see `ownership`.

Differs from the authors' code: (1) bias, scale and shift of a filter belong to it; theirs pulls and cuts the kernel
alone, or under `bn_filter` the scale alone, and a "removed" filter still sends relu of its bias or shift."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax.pruning import projections
from rap_jax.pruning.layers import (
    is_box,
    is_kernel,
    is_per_output,
    is_weight,
    kernels,
    leaves_by_name,
    leaves_of_outputs,
    sibling,
    tree_by_name,
)
from rap_jax.pruning.masks import apply_masks
from rap_jax.pruning.ownership import Specs, check_stack, kernels_of, outputs_of, owned, resolve_specs, specs_of_owners
from rap_jax.pruning.projections import BatchNormFilter, Column, Filter, Irregular, Spec, check_finite

Structure = Literal["irregular", "filter", "column", "bn_filter"]
_STRUCTURES: dict[Structure, type[Spec]] = {
    "irregular": Irregular,
    "filter": Filter,
    "column": Column,
    "bn_filter": BatchNormFilter,
}


def specs_from_patterns(
    patterns: Sequence[tuple[str, float]],
    params: chex.ArrayTree,
    *,
    structure: Structure,
    output_layer: str,
    budget: Literal["layer", "global"] = "layer",
) -> dict[str, Spec]:
    """The sparsity set of every layer that a pattern matches.

    A pattern is compared with a layer's whole path, such as `group1_block0/conv1`. The pattern `*` alone means every
    layer that can be pruned: under `filter` and `bn_filter` the output layer is left out, since removing one of its
    outputs would remove a class, and under `bn_filter` the layers without BatchNorm.

    Args:
      patterns: (shell-style wildcard, share of zeros) pairs; the first that matches a layer decides.
      params: weights, or their shapes, in layers as in `rap_jax.pruning.layers`.
      structure: which of the four sets.
      output_layer: path of the layer that makes the logits.
      budget: see `rap_jax.pruning.projections`.

    Raises:
      ValueError: a pattern matches no layer, names the output layer for filter pruning, or under `bn_filter` names
        a layer without BatchNorm; `bn_filter` where there is no BatchNorm at all.
    """
    layers = _spec_keys(params, structure)
    specs: dict[str, Spec] = {}
    for pattern, ratio in patterns:
        for layer in _matching(pattern, ratio, layers, structure, output_layer):
            weights = layers[layer]
            if weights is not None:  # `*`, or a ratio of 0, may mean layers without BatchNorm too
                specs.setdefault(weights, _STRUCTURES[structure](ratio, budget))
    return {name: spec for name, spec in specs.items() if spec.sparsity > 0}


def _spec_keys(params: chex.ArrayTree, structure: Structure) -> dict[str, str | None]:
    """For each layer the name that a spec of it is keyed by: its kernel, or the scale of its BatchNorm if any."""
    leaves = leaves_by_name(params)
    found: dict[str, str | None] = {}
    for kernel, _ in kernels(params):
        scale = sibling(kernel, "scale")
        has_scale = scale in leaves_of_outputs(kernel, leaves)
        found[kernel.removesuffix("/kernel")] = kernel if structure != "bn_filter" else scale if has_scale else None
    return found


def _matching(
    pattern: str, ratio: float, layers: Mapping[str, str | None], structure: Structure, output_layer: str
) -> list[str]:
    """The layers that a pattern means; refuses those that cannot be pruned, where a ratio above 0 asks for it."""
    matched = [layer for layer in layers if fnmatch.fnmatchcase(layer, pattern)]
    if not matched:
        raise ValueError(f"sparsity pattern {pattern!r} matches no layer; the layers are {', '.join(layers)}.")
    if ratio > 0 and not any(layers.values()):
        raise ValueError(
            f"structure is {structure!r}, which chooses filters by the scale of their BatchNorm, but the network has "
            f"no BatchNorm: none of {', '.join(layers)} has a scale. Use --structure=filter."
        )
    removes_outputs = structure in ("filter", "bn_filter")
    if pattern == "*":
        return [layer for layer in matched if not (removes_outputs and layer == output_layer)]
    if ratio > 0 and removes_outputs and output_layer in matched:
        raise ValueError(
            f"sparsity pattern {pattern!r} matches the output layer {output_layer!r}: pruning its filters would "
            f"remove classes. Leave it out, or use --structure=column or irregular."
        )
    bare = [layer for layer in matched if layers[layer] is None]
    if ratio > 0 and bare:
        raise ValueError(
            f"sparsity pattern {pattern!r} matches {', '.join(bare)} without BatchNorm, whose scale structure "
            f"{structure!r} needs. Leave them out by an earlier pattern that gives them 0, or use --structure=filter."
        )
    return matched


def selected(specs: Specs, params: chex.ArrayTree) -> chex.ArrayTree:
    """A tree of bool like `params`: True for the leaves that the sets constrain (a mask for `optax.masked`).

    A box such as `nnx.Param` counts as a leaf. `nnx.Optimizer` shows its transformations two kinds of tree: it takes
    `optax.masked(penalty, lambda params: selected(specs, params))`, which suits any tree.

    These are the weights with a spec and, of layers that lose whole outputs, all that belongs to the outputs: it has
    to go to zero with them, in ADMM already and not only at the cut. Under `BatchNormFilter` the kernel stays free.

    Raises:
      ValueError: see `masks_of`.
    """
    specs, leaves = resolve_specs(specs, params)
    chosen = set(specs)
    for name, spec in specs.items():
        if isinstance(spec, Filter):
            chosen.update(owned(name, spec, leaves))
        if isinstance(spec, BatchNormFilter):
            outputs = outputs_of(name, spec, leaves)
            chosen.update(other for other in owned(name, spec, leaves) if is_per_output(leaves[other], outputs))
    treedef = jax.tree.structure(params, is_leaf=is_box)
    return jax.tree.unflatten(treedef, [name in chosen for name in leaves])


def only_selected(specs: Specs, params: chex.ArrayTree) -> chex.ArrayTree:
    """The params with `optax.MaskedNode` for leaves that are free: the tree that `optax.masked` shows inside."""
    return jax.tree.map(lambda chosen, leaf: leaf if chosen else optax.MaskedNode(), selected(specs, params), params)


def project_tree(specs: Specs, params: chex.ArrayTree) -> chex.ArrayTree:
    """Projects all weights that have a spec, and zeroes all that outputs which are gone leave behind; the rest stays.

    Of the tree that `only_selected` gives it is ADMM's projection, of whole params it is the cut.
    """
    return apply_masks(masks_of(specs, params), params)


def masks_of(specs: Specs, params: chex.ArrayTree) -> chex.ArrayTree:
    """True where a weight survives the cut, bool tree like `params`.

    An output whose kernel weights are all gone, now or before, loses what belongs to it, whatever the structure.
    Weights that are zero already have the lowest scores, so they count as removed: a sparsity of 0.75 after one of 0.5
    means 0.75 in all. Where fewer are asked for than are gone already, the mask is True at some zeros; take
    `both(masks, masks_of_zeros(params))` to hold those at zero too. Specs with the budget `global` share one count, in
    the order of the tree.

    Raises:
      ValueError: a spec's key is no leaf of the params, or its weights have the wrong number of axes; a layer has two
        specs, for kernel and scale; specs with the budget `global` differ; it is open what belongs to an output, see
        `ownership.check_specs`; weights are NaN or infinite.
    """
    specs, leaves = resolve_specs(specs, params)
    for name, spec in specs.items():
        projections.check_weights(spec, leaves[name], name)
    masks = {name: projections.mask(specs[name], leaves[name]) for name in leaves if _has_budget(specs, name, "layer")}
    sharing = [name for name in leaves if _has_budget(specs, name, "global")]
    if sharing:
        together = projections.masks_together(specs[sharing[0]], [leaves[name] for name in sharing])
        masks.update(zip(sharing, together, strict=True))
    return complete_masks(specs, params, masks)


def complete_masks(specs: Specs, params: chex.ArrayTree, masks: Mapping[str, jax.Array]) -> chex.ArrayTree:
    """The masks of all weights that have a spec, as a tree like `params`: what belongs to a removed output goes too.

    Args:
      specs: the sparsity sets, of names in the tree.
      params: an output counts as removed where all its kernel weights are masked, or zero here.
      masks: bool, shape of its weights, by the names of the specs.

    Raises:
      ValueError: see `ownership.check_specs`.
    """
    specs, leaves = resolve_specs(specs, params)
    found = dict(masks)
    for name in [name for name in found if isinstance(specs[name], BatchNormFilter)]:
        for kernel in kernels_of(name, specs[name], leaves):  # ADMM does not see it, the cut does
            found[kernel] = on_outputs(found[name], leaves[kernel].shape)
    return _full_tree(found, params, specs_of_owners(specs, leaves))


def masks_of_zeros(params: chex.ArrayTree, *, specs: Specs | None = None) -> chex.ArrayTree:
    """True where a weight was not pruned before, bool tree like `params`: for zeros that are to stay zero.

    False at the zeros of every kernel and at what belongs to outputs whose kernel is all zero. Other zeros are not
    pruned weights: shifts, and often biases, start at exactly zero.

    Args:
      specs: the sets of the earlier pruning, where they name weights that are not called `kernel`, or what belongs to
        them elsewhere in the tree. They name every stack of layers that lost outputs.

    Raises:
      ValueError: see `ownership.check_specs`; weights are NaN or infinite.
    """
    named, leaves = resolve_specs({} if specs is None else specs, params)
    weights = [name for name, leaf in leaves.items() if is_kernel(name) or (name in named and is_weight(name, leaf))]
    by_owner = specs_of_owners(named, leaves)
    for name in weights if specs is None else ():
        check_stack(name, None, leaves)
    return _full_tree({name: leaves[name] != 0 for name in weights}, params, by_owner)


def _full_tree(masks: Mapping[str, jax.Array], params: chex.ArrayTree, specs: Specs) -> chex.ArrayTree:
    """Masks of some leaves as a tree like `params`: outputs that are gone take along what belongs to them."""
    leaves = leaves_by_name(params)
    found = {name: jnp.ones(leaf.shape, bool) for name, leaf in leaves.items()} | dict(masks)
    for owner, mask in masks.items():
        stack_axes = len(outputs_of(owner, specs.get(owner), leaves)) - 1
        # A scale of zero is not a removed filter: some networks start there.
        left = mask & (leaves[owner] != 0) if mask.ndim - stack_axes > 1 else mask
        alive = left.reshape(*left.shape[:stack_axes], -1, left.shape[-1]).any(stack_axes)
        for name in owned(owner, specs.get(owner), leaves):
            check_finite(name, leaves[name])
            found[name] &= on_outputs(alive, leaves[name].shape)
    return tree_by_name(params, found)


def on_outputs(alive: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One bool per output, [*stack, outputs], on weights of that shape."""
    stack_axes = alive.ndim - 1
    between = (1,) * (len(shape) - alive.ndim)
    return jnp.broadcast_to(alive.reshape(*shape[:stack_axes], *between, shape[-1]), shape)


def _has_budget(specs: Specs, name: str, budget: str) -> bool:
    return name in specs and specs[name].budget == budget
