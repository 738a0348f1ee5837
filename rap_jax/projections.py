"""Projections on the sparsity sets of Ye et al., 2019, section 3.1: irregular, filter and column.

A weight has its outputs on the last axis, as Flax stores it: [H, W, Cin, Cout] or [in, out]. A set holds the weights
with at most `num_kept` non-zero structures:

    Irregular   single weights                                           score |w|
    Filter      all weights of one output, w[..., n]                     score the sum of their squares
    Column      one place of all filters, w[h, w, c, :] (dense: one input)   score the sum of their squares

The Euclidean projection keeps the structures of highest score and zeroes the others.

Differs from the authors' code: (1) exactly `num_kept` structures survive, a tie goes to the lower index; theirs
compares with a percentile, and a tie there leaves weights that are neither zeroed nor kept by the mask.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class _Spec:
    """`sparsity` is the share of structures to remove, in [0, 1)."""

    sparsity: float

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity is {self.sparsity!r}; expected a share of zeros in [0, 1).")


class Irregular(_Spec):
    """Single weights go, wherever they are."""


class Filter(_Spec):
    """Whole outputs go: filters of a convolution, neurons of a dense layer."""


class Column(_Spec):
    """Whole inputs go: the same place in every filter of a layer."""


Spec = Irregular | Filter | Column


def num_kept(spec: Spec, num_structures: int) -> int:
    """Structures that survive: the share to remove is rounded to the nearest count, half up; at least one stays."""
    removed = math.floor(spec.sparsity * num_structures + 0.5)
    return max(1, num_structures - removed)


def scores(spec: Spec, weights: jax.Array) -> jax.Array:
    """One score per structure, flat: [weights.size], [outputs] or [inputs]."""
    if isinstance(spec, Irregular):
        return jnp.abs(weights).ravel()
    squares = (weights * weights).reshape(-1, weights.shape[-1])
    return squares.sum(0 if isinstance(spec, Filter) else 1)


def keep_largest(values: jax.Array, count: int) -> jax.Array:
    """Marks the `count` largest of a flat array, [n] bool; among equals the lower index is kept."""
    threshold = jnp.sort(values)[values.size - count]
    above = values > threshold
    ties = values == threshold
    room = count - above.sum()
    return above | (ties & (jnp.cumsum(ties) <= room))


def mask(spec: Spec, weights: jax.Array) -> jax.Array:
    """True where a weight survives, bool, shape of `weights`.

    Raises:
      ValueError: fewer than two axes, so there are no outputs and inputs to speak of.
    """
    if weights.ndim < 2:
        raise ValueError(f"weights have shape {weights.shape}; expected [..., inputs, outputs] with 2 or more axes.")
    values = scores(spec, weights)
    kept = keep_largest(values, num_kept(spec, values.size))
    if isinstance(spec, Irregular):
        return kept.reshape(weights.shape)
    if isinstance(spec, Filter):
        return jnp.broadcast_to(kept, weights.shape)
    return jnp.broadcast_to(kept.reshape(*weights.shape[:-1], 1), weights.shape)


def project(spec: Spec, weights: jax.Array) -> jax.Array:
    """The nearest weights, in Euclidean distance, with `num_kept` structures or fewer; same shape and dtype."""
    return jnp.where(mask(spec, weights), weights, jnp.zeros((), weights.dtype))
