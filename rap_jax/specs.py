"""From layer-name patterns to one sparsity set per weight: `{"conv1/kernel": Filter(0.5), ...}`.

A spec is static, so the mapping is a plain dict beside the params, keyed by a weight's path; functions that work on
a whole tree of params take it as an argument.
"""

import fnmatch
from collections.abc import Iterator, Mapping

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax import projections
from rap_jax.config import PruneConfig
from rap_jax.projections import Column, Filter, Irregular, Spec

Specs = Mapping[str, Spec]
_STRUCTURES: dict[str, type[Spec]] = {"irregular": Irregular, "filter": Filter, "column": Column}


def path_name(path: tuple[object, ...]) -> str:
    """A leaf's path as `conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def kernels(params: chex.ArrayTree) -> Iterator[tuple[str, jax.Array]]:
    """The weights that pruning is about: every leaf named `kernel`, with its path, in the order of the tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if name.rsplit("/", 1)[-1] == "kernel":
            yield name, leaf


def specs_from_config(params: chex.ArrayTree, config: PruneConfig, *, output_layer: str) -> dict[str, Spec]:
    """The sparsity set of every layer that a pattern of `config.sparsity` matches.

    The pattern `*` alone means every layer that can be pruned: under `filter` the output layer is left out, since
    removing one of its outputs would remove a class.

    Raises:
      ValueError: a pattern matches no layer, or names the output layer for filter pruning.
    """
    layers = {name.removesuffix("/kernel"): name for name, _ in kernels(params)}
    filters = config.structure == "filter"
    specs: dict[str, Spec] = {}
    for pattern, ratio in config.sparsity:
        matched = [layer for layer in layers if fnmatch.fnmatchcase(layer, pattern)]
        if not matched:
            raise ValueError(f"sparsity pattern {pattern!r} matches no layer; the layers are {', '.join(layers)}.")
        if filters and pattern == "*":
            matched.remove(output_layer)
        if filters and output_layer in matched and ratio > 0:
            raise ValueError(
                f"sparsity pattern {pattern!r} matches the output layer {output_layer!r}: pruning its filters would "
                f"remove classes. Leave it out, or use --structure=column or irregular."
            )
        for layer in matched:
            specs.setdefault(layers[layer], _STRUCTURES[config.structure](ratio))
    return {name: spec for name, spec in specs.items() if spec.sparsity > 0}


def selected(params: chex.ArrayTree, specs: Specs) -> chex.ArrayTree:
    """A tree of bool like `params`: True for the leaves that have a spec (a mask for `optax.masked`)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path) in specs, params)


def only_selected(params: chex.ArrayTree, specs: Specs) -> chex.ArrayTree:
    """The params with `optax.MaskedNode` for leaves without a spec: the tree that `optax.masked` shows inside."""
    return jax.tree.map(lambda leaf, chosen: leaf if chosen else optax.MaskedNode(), params, selected(params, specs))


def project_tree(specs: Specs, params: chex.ArrayTree) -> chex.ArrayTree:
    """Projects every leaf that has a spec, leaves the others as they are."""

    def project_leaf(path: tuple[object, ...], weights: jax.Array) -> jax.Array:
        spec = specs.get(path_name(path))
        return weights if spec is None else projections.project(spec, weights)

    return jax.tree_util.tree_map_with_path(project_leaf, params)


def masks_of(specs: Specs, params: chex.ArrayTree) -> chex.ArrayTree:
    """True where a weight survives the cut, bool tree like `params`.

    An output whose weights are all gone loses its bias too: otherwise a removed filter would still send a constant.
    """
    kernel_masks = {name: projections.mask(specs[name], w) for name, w in kernels(params) if name in specs}

    def mask_leaf(path: tuple[object, ...], leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        if name in kernel_masks:
            return kernel_masks[name]
        kernel_mask = kernel_masks.get(f"{name.removesuffix('bias')}kernel")
        if name.endswith("bias") and kernel_mask is not None:
            return kernel_mask.reshape(-1, kernel_mask.shape[-1]).any(0)
        return jnp.ones(leaf.shape, bool)

    return jax.tree_util.tree_map_with_path(mask_leaf, params)
