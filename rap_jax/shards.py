"""State in pieces: with a mesh axis `model` each of its devices has a share of every large array.

A step gathers the weights once, computes with whole ones on its share of the batch, and keeps of what it has found the
piece that is its own, as in FSDP (Zhao et al., 2023, https://arxiv.org/abs/2304.11277): weights, z, u, masks and the
moments of the optimizer take 1/N of the memory, for one all-gather a step. The numbers are those of whole state, since
no sum is split but the one over the batch.

What is cut is what is wide, the kernels of dense layers and convolutions. Anything smaller would save
nothing and wait for the others.
"""

import math
from typing import Any

import chex
import jax
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from rap_jax.state import MODEL_AXIS, home, replicated

# Of numbers in an array; smaller ones are on every device.
LEAST_SIZE = 4096


def state_home(
    state: chex.ArrayTree, mesh: Mesh, *, whole: Sharding | None = None, least_size: int = LEAST_SIZE
) -> Any:
    """Where each array of a state lies: tree of shardings like `state`, whose leaves have a shape.

    An array of two axes or more is cut along its longest axis that the `model` axis of the mesh divides, the last of
    several; one that has none, and every other array, stays whole.

    Args:
      whole: where an array lies that is not cut; None for `home`.
    """
    whole = home(mesh) if whole is None else whole
    return jax.tree.map(lambda leaf: _cut(leaf.shape, mesh, least_size) or whole, state)


def gather(tree: chex.ArrayTree, mesh: Mesh) -> chex.ArrayTree:
    """Inside of a program: the same arrays, whole on every device."""
    if MODEL_AXIS not in mesh.axis_names:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, replicated(mesh)), tree)


def _cut(shape: tuple[int, ...], mesh: Mesh, least_size: int) -> Sharding | None:
    number = mesh.shape.get(MODEL_AXIS, 1)
    divided = [(length, axis) for axis, length in enumerate(shape) if length % number == 0]
    if number == 1 or len(shape) < 2 or math.prod(shape) < least_size or not divided:
        return None
    _, chosen = max(divided)
    return NamedSharding(mesh, P(*(MODEL_AXIS if axis == chosen else None for axis in range(len(shape)))))
