"""A function of single images, applied to a batch in parts that stay in the caches of a CPU.

An attack goes through the same images many times. With all images of a device at once, each of its operations finds
that the one before it has pushed its inputs out of the cache.
"""

from collections.abc import Callable
from typing import TypeVar

import chex
import jax
from jax import lax
from jax.sharding import Mesh

MOST_IMAGES = 32

Batch = TypeVar("Batch", bound=chex.ArrayTree)


def map_parts(function: Callable[[Batch], chex.ArrayTree], batch: Batch, mesh: Mesh) -> chex.ArrayTree:
    """`function(batch)`, on a CPU computed in equal parts of the batch, `MOST_IMAGES` or fewer.

    Args:
      function: takes and returns trees whose leaves have the images on their first axis, and treats each by itself.
      batch: what one device has, leaves [N, ...].
      mesh: the devices; accelerators, with work for thousands of threads at once, get the batch as a whole.
    """
    num_images = len(jax.tree.leaves(batch)[0])
    size = max(size for size in range(1, MOST_IMAGES + 1) if num_images % size == 0)
    whole = mesh.devices.flat[0].platform != "cpu" or num_images <= MOST_IMAGES or size < MOST_IMAGES // 2
    if whole:
        return function(batch)
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), batch)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), lax.map(function, parts))
