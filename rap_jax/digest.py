"""What a tree of arrays is, in short: its digest and its layout, by which a saved one is recognised."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def digest(tree: Any) -> str:
    """Returns the hex sha256 over name, dtype, shape and bytes of every leaf, by name; a key counts by its data."""
    total = hashlib.sha256(json.dumps(layout(tree), sort_keys=True).encode())
    for _, leaf in sorted(named_leaves(tree), key=lambda named: named[0]):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        total.update(np.ascontiguousarray(_whole(jax.random.key_data(leaf) if is_key else leaf)).tobytes())
    return total.hexdigest()


def _whole(leaf: Any) -> Any:
    """The array on every process, if it is split over several."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    return jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))  # type: ignore[attr-defined]


def layout(tree: Any) -> dict[str, str]:
    """Returns name -> dtype and shape of every leaf, such as `params/conv1/kernel` -> `float32[5,5,1,32]`."""
    layout = {}
    for name, leaf in named_leaves(tree):
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            raise ValueError(f"{name} of the state is {leaf!r}; expected an array.")
        layout[name] = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return layout


def seal(record: dict[str, Any]) -> str:
    """Returns the hex sha256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields every leaf with its path, such as `params/conv1/kernel`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf
