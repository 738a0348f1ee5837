"""From layer-name patterns to one sparsity set per weight: `{"conv1/kernel": Filter(0.5), ...}`.

A spec is static, so the mapping is a plain dict beside the params, keyed by a weight's path; functions that work on
a whole tree of params take it as an argument.

Differs from the authors' code: (1) the bias of a filter belongs to it. ADMM pulls it to zero with the filter, and the
cut takes it; theirs leaves it, and a "removed" filter goes on sending relu(bias).
"""

import fnmatch
from collections.abc import Iterator, Mapping

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax import projections
from rap_jax.config import PruneConfig
from rap_jax.masking import apply_masks
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
    """A tree of bool like `params`: True for the leaves that the sets constrain (a mask for `optax.masked`).

    These are the kernels with a spec, and the biases of those that lose whole filters: a removed filter that kept its
    bias would still send a constant, so the bias has to go to zero with it, in ADMM already and not only at the cut.

    Raises:
      ValueError: a spec's key is no leaf of the params.
    """

    _refuse_unknown(specs, params)

    def is_constrained(path: tuple[object, ...], _: jax.Array) -> bool:
        name = path_name(path)
        return name in specs or isinstance(specs.get(_kernel_beside(name)), Filter)

    return jax.tree_util.tree_map_with_path(is_constrained, params)


def only_selected(params: chex.ArrayTree, specs: Specs) -> chex.ArrayTree:
    """The params with `optax.MaskedNode` for leaves that are free: the tree that `optax.masked` shows inside."""
    return jax.tree.map(lambda leaf, chosen: leaf if chosen else optax.MaskedNode(), params, selected(params, specs))


def project_tree(specs: Specs, params: chex.ArrayTree) -> chex.ArrayTree:
    """Projects every kernel that has a spec, and zeroes the biases of outputs that are gone; the rest stays."""
    return apply_masks(masks_of(specs, params), params)


def masks_of(specs: Specs, params: chex.ArrayTree) -> chex.ArrayTree:
    """True where a weight survives the cut, bool tree like `params`.

    Which structures survive is decided by the kernel alone, as in the paper. An output whose weights are all gone
    loses its bias too.

    Raises:
      ValueError: a spec's key is no leaf of the params, or its weights have fewer than two axes.
    """
    _refuse_unknown(specs, params)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernel_masks = {n: projections.mask(specs[n], w) for n, w in ((path_name(p), w) for p, w in leaves) if n in specs}

    def mask_leaf(path: tuple[object, ...], leaf: jax.Array) -> jax.Array:
        name = path_name(path)
        if name in kernel_masks:
            return kernel_masks[name]
        kernel_mask = kernel_masks.get(_kernel_beside(name))
        if kernel_mask is not None:
            return kernel_mask.reshape(-1, kernel_mask.shape[-1]).any(0)
        return jnp.ones(leaf.shape, bool)

    return jax.tree_util.tree_map_with_path(mask_leaf, params)


def _refuse_unknown(specs: Specs, params: chex.ArrayTree) -> None:
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    unknown = [name for name in specs if name not in names]
    if unknown:
        raise ValueError(
            f"Specs name {', '.join(unknown)}, but the weights are {', '.join(names)}; expected their paths as keys "
            f"(an nnx.State goes through nnx.to_pure_dict first)."
        )


def _kernel_beside(name: str) -> str:
    """The kernel of the layer that a bias belongs to; of anything else a name that no kernel has."""
    layer, _, leaf = name.rpartition("/")
    return f"{layer}/kernel" if leaf == "bias" else ""
