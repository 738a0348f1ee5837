"""What makes up a layer in a tree of params: its kernel, and what belongs to the outputs of that kernel.

A layer is the leaves that lie side by side, `{"kernel": [..., out], "bias": [out], "scale": [out], "shift": [out]}`;
scale and shift are those of the BatchNorm that follows its kernel. Every leaf beside the kernel with one axis of length
`out` belongs to its outputs, one number to each. Layers may lie at any depth: `group1_block0/conv1/kernel`."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import chex
import jax
import optax

_BOXED = (jax.tree_util.GetAttrKey("value"),)


def path_name(path: tuple[object, ...]) -> str:
    """A leaf's path as `conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_box(node: Any) -> bool:
    """Whether a node of a tree wraps one array as its `value`: an `nnx.Param`, or `nn.Partitioned` of Linen."""
    inside = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda child: child is not node)
    return [path for path, _ in inside] == [_BOXED] and jax.tree_util.all_leaves([inside[0][1]])


def leaves_by_name(params: chex.ArrayTree) -> dict[str, Any]:
    """All leaves, keyed by their path, in the order of the tree. A box has the name of what it wraps.

    Raises:
      ValueError: two leaves have one name, as `{"a/b": w, "a": {"b": w}}` has them.
    """
    found: dict[str, Any] = {}
    for path, node in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box):
        name = path_name(path)
        if name in found:
            raise ValueError(f"Two leaves of the tree are named {name!r}; expected names that differ.")
        found[name] = node if not is_box(node) else jax.tree.leaves(node)[0]
    return found


def arrays_by_name(params: chex.ArrayTree) -> dict[str, Any]:
    """As `leaves_by_name`, of a tree of which every leaf has a shape and a dtype.

    Raises:
      ValueError: a leaf is a function, a Python number or anything else that is no array; two leaves have one name.
    """
    found = leaves_by_name(params)
    for name, leaf in found.items():
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise ValueError(
                f"{name} is {leaf!r:.60}; expected an array. Make numbers arrays, jnp.asarray(value), and leave "
                f"functions and settings out of the tree, as eqx.filter(params, eqx.is_array) does."
            )
    return found


def tree_by_name(params: chex.ArrayTree, by_name: Mapping[str, Any]) -> Any:
    """The tree of the params with other leaves, `by_name[name]` for each name of `leaves_by_name`."""
    return jax.tree.unflatten(jax.tree.structure(params), [by_name[name] for name in leaves_by_name(params)])


def names_left_out(params: chex.ArrayTree) -> set[str]:
    """Names of the leaves that `optax.masked` hides."""
    is_hidden: Callable[[Any], bool] = lambda node: isinstance(node, optax.MaskedNode)
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_hidden)
    return {path_name(path) for path, node in nodes if is_hidden(node)}


def kernels(params: chex.ArrayTree) -> Iterator[tuple[str, jax.Array]]:
    """The weights that pruning is about: every leaf named `kernel`, with its path, in the order of the tree."""
    for name, leaf in leaves_by_name(params).items():
        if is_kernel(name):
            yield name, leaf


def is_kernel(name: str) -> bool:
    """Whether a leaf is named `kernel`."""
    return name.rsplit("/", 1)[-1] == "kernel"


def sibling(name: str, leaf: str) -> str:
    """The name of another leaf of the same layer: `sibling("conv1/scale", "kernel")` is `conv1/kernel`."""
    layer, slash, _ = name.rpartition("/")
    return f"{layer}{slash}{leaf}"


def siblings(name: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The other leaves of the same layer, by name."""
    layer = name.rpartition("/")[0]
    return {other: leaf for other, leaf in leaves.items() if other != name and other.rpartition("/")[0] == layer}


def is_weight(name: str, leaf: Any) -> bool:
    """Whether a leaf has inputs and outputs: it is named `kernel`, or has more than one number per output."""
    return is_kernel(name) or math.prod(leaf.shape) > math.prod(leaf.shape[-1:])


def is_per_output(leaf: Any, outputs: tuple[int, ...]) -> bool:
    """Whether a leaf has one number per output, [*stack, outputs], with axes of length 1 in between or without.

    Args:
      outputs: [*stack, outputs]; without axes that count layers it is [outputs].
    """
    return ends(leaf.shape, outputs) == outputs and math.prod(leaf.shape[len(outputs) - 1 : -1]) == 1


def ends(shape: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a shape that stand where `outputs`, [*stack, outputs], are expected."""
    stack = len(outputs) - 1
    return shape[:stack] + shape[stack:][-1:]


def leaves_of_outputs(owner: str, leaves: Mapping[str, Any], stack_axes: int = 0) -> list[str]:
    """Names of the other leaves of a layer that hold one number per output of `owner`.

    Args:
      owner: name of a kernel, or of a scale. Under other names it must be the only one with inputs and outputs in its
        layer, or have but one such beside it: in `{"w1", "b1", "w2", "b2"}` nothing tells whose a bias is, and nothing
        is found. Nor is for `weight`, which has its outputs on the first axis in Equinox and PyTorch.
      leaves: all leaves by name, see `leaves_by_name`; arrays or anything with a shape.
      stack_axes: so many leading axes count layers.
    """
    last, layer, shape = owner.rsplit("/", 1)[-1], siblings(owner, leaves), leaves[owner].shape
    is_scale = len(shape) - stack_axes == 1
    others = sum(is_weight(name, leaf) for name, leaf in layer.items())
    if last not in ("kernel", "scale") and (others > is_scale or (last == "weight" and not is_scale)):
        return []
    outputs = shape[:stack_axes] + shape[-1:]
    return [name for name, leaf in layer.items() if not is_kernel(name) and is_per_output(leaf, outputs)]
