"""Which examples are read when, and how bytes become the inputs of a network."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax.config import require


@functools.partial(jax.jit, static_argnames="num_examples")
def epoch_order(key: jax.Array, epoch: jax.Array | int, num_examples: int) -> jax.Array:
    """Shuffles the examples for one epoch.

    A pure function of its arguments, so a run that was cut off needs no more than its step number to go on.

    Args:
      key: typed PRNG key of the run; the same for all epochs.
      epoch: number of the epoch, from 0; may be traced.
      num_examples: N.

    Returns:
      A permutation of 0..N-1, int32 [N].
    """
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples).astype(jnp.int32)


def to_unit(images: jax.Array | np.ndarray) -> jax.Array:
    """Scales bytes to the inputs that models and attacks take.

    Args:
      images: uint8 in 0..255, any shape.

    Returns:
      float32 in [0, 1], same shape; 0 and 255 become exactly 0 and 1.

    Raises:
      ValueError: the type is another, as of images that have been scaled already.
    """
    require(images.dtype == np.uint8, "dtype of images", images.dtype, "uint8, in 0..255")
    return jnp.asarray(images).astype(jnp.float32) / 255


def padded_batches(num_examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Goes through all examples once, in order, in batches of one shape.

    The last batch is filled up with example 0, marked as not valid, so that nothing is lost or counted twice and a
    jitted function is compiled once.

    Args:
      num_examples: N, 1 or more.
      batch_size: B, 1 or more.

    Returns:
      Iterator over ceil(N / B) pairs of indices, int32 [B], and whether each of them counts, bool [B].

    Raises:
      ValueError: one of the two is below 1.
    """
    require(num_examples >= 1, "num_examples", num_examples, "1 or more examples")
    require(batch_size >= 1, "batch_size", batch_size, "1 or more examples")
    return (_padded_batch(start, num_examples, batch_size) for start in range(0, num_examples, batch_size))


def _padded_batch(start: int, num_examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    indices = np.arange(start, start + batch_size, dtype=np.int32)
    valid = indices < num_examples
    return np.where(valid, indices, np.int32(0)), valid
