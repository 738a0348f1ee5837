"""What is asked of an array before anything is computed, and the width in which numbers are compared and summed."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_array(value: Any) -> bool:
    """Whether it is an array of JAX, traced or not, or of NumPy."""
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def is_number(value: Any) -> bool:
    """Whether it is one real number, of Python or an array without axes, traced or not; bool is none."""
    if is_array(value):
        real = jnp.issubdtype(value.dtype, jnp.number) and not jnp.issubdtype(value.dtype, jnp.complexfloating)
        return value.ndim == 0 and real
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def known_values(array: jax.Array | np.ndarray) -> np.ndarray | None:
    """The numbers in an array; None while it is traced, or where another process has a part of it."""
    if isinstance(array, jax.core.Tracer) or not getattr(array, "is_fully_addressable", True):
        return None
    return np.asarray(array)


def in_words(value: Any) -> str:
    """What an error calls a value: dtype and shape of an array, the type of anything else."""
    return f"{value.dtype}{list(value.shape)}" if is_array(value) else f"a {type(value).__name__}"


def at_least_float32(array: jax.Array) -> jax.Array:
    """The floats in float32 where they are narrower; strict promotion, which refuses `jnp.promote_types`, allows it."""
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array
