"""What makes up a layer in a tree of params: its kernel, and what belongs to the outputs of that kernel.

A layer is the leaves that lie side by side, `{"kernel": [..., out], "bias": [out], "scale": [out], "shift": [out]}`;
scale and shift are those of the BatchNorm that follows its kernel. Every leaf beside the kernel with one axis of length
`out` belongs to its outputs, one number to each. Layers may lie at any depth: `group1_block0/conv1/kernel`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import chex
import jax

# Of every BatchNorm: what is added to the variance.
BATCH_NORM_EPSILON = 1e-5


def path_name(path: tuple[object, ...]) -> str:
    """A leaf's path as `conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_name(params: chex.ArrayTree) -> dict[str, Any]:
    """All leaves, keyed by their path, in the order of the tree."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def kernels(params: chex.ArrayTree) -> Iterator[tuple[str, jax.Array]]:
    """The weights that pruning is about: every leaf named `kernel`, with its path, in the order of the tree."""
    for name, leaf in leaves_by_name(params).items():
        if name.rsplit("/", 1)[-1] == "kernel":
            yield name, leaf


def beside(name: str, leaf: str) -> str:
    """The name of another leaf of the same layer: `beside("conv1/scale", "kernel")` is `conv1/kernel`."""
    layer, slash, _ = name.rpartition("/")
    return f"{layer}{slash}{leaf}"


def belongings(owner: str, leaves: Mapping[str, Any]) -> list[str]:
    """Names of the other leaves of a layer that hold one number per output of `owner`.

    Args:
      owner: name of a kernel, or of a scale. Leaves of other names own nothing: in `{"w1", "b1", "w2", "b2"}` nothing
        tells whose a bias is.
      leaves: all leaves by name, see `leaves_by_name`; arrays or anything with a shape.
    """
    if owner.rsplit("/", 1)[-1] not in ("kernel", "scale"):
        return []
    outputs = leaves[owner].shape[-1:]
    layer = owner.rpartition("/")[0]
    return [
        name
        for name, leaf in leaves.items()
        if name != owner and name.rpartition("/")[0] == layer and leaf.shape == outputs
    ]
