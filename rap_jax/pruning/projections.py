"""Projections on the sparsity sets of Ye et al., 2019, section 3.1, and of filters chosen by their BatchNorm.

A weight has its outputs on the last axis, as Flax stores it: [H, W, Cin, Cout] or [in, out]. A set holds the weights
with at most `num_kept` non-zero structures:

    Irregular         single weights                                               score |w|
    Filter            all weights of one output, w[..., n]                         score the sum of their squares
    Column            one place of all filters, w[h, w, c, :] (dense: one input)   score the sum of their squares
    BatchNormFilter   one output, by its BatchNorm scale, [Cout]                   score |scale|

The Euclidean projection keeps the structures of highest score and zeroes the others. Weights with the budget `global`
share one count, see `masks_together`. Squares are summed in float32 or wider, whatever the dtype of the weights.

Weights that are NaN or infinite are refused. Inside `jit`, where values cannot be checked, they have the highest score,
and NaN stays NaN, so that it shows in the loss.

Differs from the authors' code: (1) exactly `num_kept` structures survive, a tie goes to the lower index; theirs
compares with a percentile, and a tie there leaves weights that are neither zeroed nor kept by the mask. (2) The global
budget is ours: theirs, as the paper, prunes each layer by its own ratio."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax._runtime.arrays import at_least_float32, is_number


@dataclasses.dataclass(frozen=True)
class _Spec:
    """A sparsity set."""

    sparsity: float  # share of structures to remove, in [0, 1)
    budget: Literal["layer", "global"] = "layer"  # a `global` one is shared with other weights
    # Names of leaves elsewhere in the tree that are removed with an output, such as those of a BatchNorm behind it, in
    # addition to those that `layers.leaves_of_outputs` finds; kept as a sorted tuple. `()` means that there are none,
    # None that nothing is known of them.
    belongs: Iterable[str] | None = None
    # So many leading axes count layers, as in a stack of `nn.scan`, and each layer is pruned by itself. None means 0,
    # and a kernel that could be a stack is refused.
    stack_axes: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.belongs, str):
            raise ValueError(f"belongs is {self.belongs!r}; expected several names, such as {{{self.belongs!r}}}.")
        if self.belongs is not None:
            object.__setattr__(self, "belongs", tuple(sorted(self.belongs)))
        if self.stack_axes is not None and not (isinstance(self.stack_axes, int) and self.stack_axes >= 0):
            raise ValueError(f"stack_axes is {self.stack_axes!r}; expected a number of axes, 0 or more.")
        if self.stack_axes and self.budget == "global":
            raise ValueError(f"stack_axes is {self.stack_axes!r}; expected 0 with the budget 'global'.")
        if not (is_number(self.sparsity) and 0 <= self.sparsity < 1):
            raise ValueError(f"sparsity is {self.sparsity!r}; expected a share of zeros in [0, 1).")
        if self.budget not in ("layer", "global"):
            raise ValueError(f"budget is {self.budget!r}; expected layer or global.")


class Irregular(_Spec):
    """Single weights go, wherever they are."""


class Filter(_Spec):
    """Whole outputs go: filters of a convolution, neurons of a dense layer."""


class Column(_Spec):
    """Whole inputs go: the same place in every filter of a layer."""


class BatchNormFilter(_Spec):
    """Whole outputs go, those of the smallest BatchNorm scale: a set of scales [outputs], not of kernels."""


Spec = Irregular | Filter | Column | BatchNormFilter


def num_kept(spec: Spec, num_structures: int) -> int:
    """Structures that survive: the share to remove is rounded to the nearest count, half up; at least one stays."""
    removed = math.floor(spec.sparsity * num_structures + 0.5)
    return max(1, num_structures - removed)


def scores(spec: Spec, weights: jax.Array) -> jax.Array:
    """One score per structure, flat: [weights.size], [outputs] or [inputs]."""
    if isinstance(spec, Irregular | BatchNormFilter):
        return jnp.abs(weights).ravel()
    weights = at_least_float32(weights)
    squares = (weights * weights).reshape(-1, weights.shape[-1])
    return squares.sum(0 if isinstance(spec, Filter) else 1)


def keep_largest(values: jax.Array, count: int | jax.Array) -> jax.Array:
    """Marks the `count` largest of a flat array, [n] bool; among equals the lower index is kept, and NaN is largest."""
    values = _nan_is_largest(values)
    threshold = jnp.sort(values)[values.size - count]
    above = values > threshold
    ties = values == threshold
    room = count - above.sum()
    return above | (ties & (jnp.cumsum(ties) <= room))


def mask(spec: Spec, weights: jax.Array) -> jax.Array:
    """True where a weight survives, bool, shape of `weights`. With a global budget the weights have it for themselves.

    Raises:
      ValueError: see `check_weights`.
    """
    if spec.budget == "global":
        return masks_together(spec, [weights])[0]
    check_weights(spec, weights)
    if spec.stack_axes:
        one_layer = dataclasses.replace(spec, stack_axes=spec.stack_axes - 1)
        return jax.vmap(functools.partial(mask, one_layer))(weights)
    values = scores(spec, weights)
    return _broadcast(spec, keep_largest(values, num_kept(spec, values.size)), weights)


def masks_together(spec: Spec, weights: Sequence[jax.Array]) -> list[jax.Array]:
    """Masks of several weights that share one budget of `num_kept(spec, all their weights)` weights.

    Structures are ranked by score per weight and kept, best first, while the kept weights fit the budget; at least one
    stays per array. Among equals the earlier array wins, then the lower index. For single weights and for scales this
    is the Euclidean projection. Filters and columns of different layers differ in size, and the best choice would be
    a knapsack: this is its linear relaxation without the fractional item, so the weights kept fall short of the
    budget by less than one structure (unless one structure per array is already more than the budget).

    Args:
      spec: the set of all of them, whatever its `budget`.
      weights: one array or more, [..., inputs, outputs], or [outputs] for scales.

    Raises:
      ValueError: as `mask`; the set has stacks of layers.
    """
    if spec.stack_axes:
        raise ValueError(f"stack_axes is {spec.stack_axes!r}; expected 0 for weights that share one budget.")
    for array in weights:
        check_weights(spec, array)
    values = [_nan_is_largest(at_least_float32(scores(spec, array))) for array in weights]
    widest = max((value.dtype for value in values), key=lambda dtype: dtype.itemsize)
    values = [value.astype(widest) for value in values]
    sizes = [array.size // value.size for array, value in zip(weights, values, strict=True)]
    per_weight = jnp.concatenate([value / size for value, size in zip(values, sizes, strict=True)])
    best = jnp.concatenate([jnp.arange(value.size) == jnp.argmax(value) for value in values])
    size_of = jnp.concatenate([jnp.full(value.size, size) for value, size in zip(values, sizes, strict=True)])
    room = num_kept(spec, sum(array.size for array in weights))
    # The best of each array comes first, so that it takes its place out of the budget.
    order = jnp.argsort(jnp.where(best, jnp.inf, per_weight), descending=True, stable=True)
    fits = jnp.cumsum(size_of[order]) <= room
    kept = best | jnp.zeros_like(best).at[order].set(fits)
    ends = list(itertools.accumulate(value.size for value in values))
    return [_broadcast(spec, part, array) for part, array in zip(jnp.split(kept, ends[:-1]), weights, strict=True)]


def project(spec: Spec, weights: jax.Array) -> jax.Array:
    """The nearest weights, in Euclidean distance, with `num_kept` structures or fewer; same shape and dtype."""
    return zeroed(mask(spec, weights), weights)


def zeroed(keep: jax.Array, weights: jax.Array) -> jax.Array:
    """Exact zeros where `keep` is False; NaN stays NaN, to be seen."""
    return jnp.where(keep | (weights != weights), weights, jnp.zeros((), weights.dtype))


def check_weights(spec: Spec, weights: jax.Array, name: str = "weights") -> None:
    """Refuses weights that cannot be ranked.

    Raises:
      ValueError: fewer than two axes for one layer, so there are no outputs and inputs to speak of; scales with more
        than one; no weights at all, or none of a floating-point dtype. Outside of `jit`: NaN, infinity, or squares
        that overflow.
    """
    axes, stack = weights.ndim - (spec.stack_axes or 0), "stack, " if spec.stack_axes else ""
    if isinstance(spec, BatchNormFilter) and axes != 1:
        raise ValueError(
            f"{name}: scales have shape {weights.shape}; expected [{stack}outputs], the scale of a BatchNorm. "
            f"stack_axes says how many leading axes count layers."
        )
    if not isinstance(spec, BatchNormFilter) and axes < 2:
        raise ValueError(
            f"{name} have shape {weights.shape}; expected [{stack}..., inputs, outputs] with 2 or more axes."
        )
    if not weights.size or not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(
            f"{name} are {weights.dtype}{list(weights.shape)}; expected one or more floating-point numbers."
        )
    check_finite(name, weights if isinstance(weights, jax.core.Tracer) else scores(spec, weights))


def check_finite(name: str, values: jax.Array | np.ndarray) -> None:
    """Refuses NaN and infinity, outside of `jit`.

    Args:
      values: weights, or their scores, which are finite if the weights are and their squares do not overflow.
    """
    if not isinstance(values, jax.core.Tracer) and not np.isfinite(np.asarray(values)).all():
        raise ValueError(
            f"{name} has numbers that are NaN, infinite or too large to be squared; expected finite ones. Look at the "
            f"loss, or go back to weights from before it failed."
        )


def _nan_is_largest(values: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(values), jnp.inf, values)


def _broadcast(spec: Spec, kept: jax.Array, weights: jax.Array) -> jax.Array:
    """One bool per structure, flat, on all weights of the structure."""
    if isinstance(spec, Irregular | BatchNormFilter):
        return kept.reshape(weights.shape)
    if isinstance(spec, Filter):
        return jnp.broadcast_to(kept, weights.shape)
    return jnp.broadcast_to(kept.reshape(*weights.shape[:-1], 1), weights.shape)
