"""Filters that are multiples of each other, merged into one: the same function with fewer filters.

    params = merge_duplicates(model.wiring, params)

Filter j is a duplicate of filter i if its kernel and bias are c times those of i, with c above 0. Since
relu(c a) = c relu(a), and max pooling, means and flattening commute with c, the readers can take all from i: their
weights for i grow by c times those for j, and filter j becomes zero. The strongest filter of each group stays.

A filter that is zero has the score 0. Pruning by filters cuts it first, so its place goes to the filter that would have
been cut next. It stays zero in training: it sends 0 and gets no gradient.

Duplicates occur on MNIST. The filters of conv1 of a robust LeNet become thresholds of one pixel, relu(k (x - t)), and
two of them may have the same pixel and the same t.

What cannot be merged is left alone:

  a layer with BatchNorm           scale and shift stand between the filter and its ReLU (a folded one has neither)
  a layer of a sum                 other layers write the same channels, see `rap_jax.models.wiring`
  a pair where a zero would end    a weight of a reader that is zero for i, but not for j, may be a pruned one

Differs from its source: (1) theirs merges the most similar pair of neurons, again and again, whatever the difference;
here a pair is merged only where the function stays the same, up to the tolerance. (2) A factor c is allowed, which ReLU
makes exact.

Runs on the host, in float64. Source: Srinivas and Babu, "Data-free Parameter Pruning for Deep Neural Networks", 2015,
https://arxiv.org/abs/1507.06149.
"""

from collections.abc import Collection, Sequence

import chex
import numpy as np

from rap_jax.compaction.plan import Leaves, check_wiring, numpy_by_name
from rap_jax.models.wiring import Wiring
from rap_jax.pruning.layers import siblings, tree_by_name
from rap_jax.pruning.projections import check_finite

# In a pretrained LeNet of width 4, 1 - cosine of the two filters of one pixel and threshold was 5e-6, of the next pair
# 0.05. At 1e-4 the merged filter differs from a multiple of the other one by 1.4% of its length.
TOLERANCE = 1e-4


def merge_duplicates(
    wiring: Wiring,
    params: chex.ArrayTree,
    layers: Collection[str] | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> chex.ArrayTree:
    """The params with duplicate filters merged, see above: same names, shapes and dtypes, as arrays on the host.

    Exact duplicates leave the logits as they are, up to rounding. Layers are taken in the order of the wiring, so that
    filters that differ only in their weights for duplicates of the layer before are duplicates too.

    Args:
      wiring: see `Model.wiring`.
      params: weights, such as {"conv1": {"kernel": [5, 5, 1, 8], "bias": [8]}, ...}.
      layers: paths of the layers whose filters may be merged; None for all.
      tolerance: in [0, 1). A pair is merged if the cosine of its vectors of kernel and bias is 1 - tolerance or more.

    Raises:
      ValueError: the tolerance is outside of [0, 1), a weight is NaN or infinite, or the wiring names layers that the
        params do not have.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance!r}; expected a number in [0, 1), such as {TOLERANCE}.")
    leaves = numpy_by_name(params)
    check_wiring(wiring, leaves)
    for layer in _mergeable(wiring, leaves):
        if layers is None or layer in layers:
            leaves |= _merged(wiring, layer, leaves, tolerance)
    return tree_by_name(params, leaves)


def _mergeable(wiring: Wiring, leaves: Leaves) -> list[str]:
    """The layers that alone write their channels, and have no more than a kernel and a bias."""
    groups = list(wiring.groups.values())
    alone = [layer for layer, group in wiring.groups.items() if groups.count(group) == 1]
    return [layer for layer in alone if siblings(f"{layer}/kernel", leaves).keys() <= {f"{layer}/bias"}]


def _merged(wiring: Wiring, layer: str, leaves: Leaves, tolerance: float) -> dict[str, np.ndarray]:
    """The new leaves of a layer and of its readers, by name; none where there are no duplicates."""
    written = [name for name in (f"{layer}/kernel", f"{layer}/bias") if name in leaves]
    read = [f"{reader}/kernel" for reader, producer in wiring.readers.items() if producer == layer]
    arrays = {name: leaves[name] for name in (*written, *read)}
    for name, array in arrays.items():
        check_finite(name, array)
    width = arrays[f"{layer}/kernel"].shape[-1]
    filters = np.concatenate([arrays[name].reshape(-1, width) for name in written]).T.astype(np.float64)
    readers = [arrays[name].reshape(-1, width, arrays[name].shape[-1]) for name in read]
    shares = _shares(filters, _keeps_zeros(readers), tolerance)
    kept = shares.diagonal() > 0
    if kept.all():
        return {}
    found = {name: np.where(kept, arrays[name], 0) for name in written}
    found |= {name: shares @ weights.astype(np.float64) for name, weights in zip(read, readers, strict=True)}
    return {name: array.reshape(arrays[name].shape).astype(arrays[name].dtype) for name, array in found.items()}


def _shares(filters: np.ndarray, allowed: np.ndarray, tolerance: float) -> np.ndarray:
    """What each filter takes over of what is read from the others: float64 [outputs, outputs].

    Entry [i, j] is the factor of the readers' weights for j in their new weights for i: 1 on the diagonal, or 0 for a
    filter that is merged into another one.

    Args:
      filters: [outputs, weights], kernel and bias of each.
      allowed: bool [outputs, outputs]: whether j may be merged into i.
      tolerance: see `merge_duplicates`.
    """
    norms, products = np.linalg.norm(filters, axis=1), filters @ filters.T
    shares, open_to_merge = np.eye(len(filters)), norms > 0
    for one in np.argsort(-norms, kind="stable"):
        if open_to_merge[one]:
            open_to_merge[one] = False
            same = open_to_merge & allowed[one] & (products[one] >= (1 - tolerance) * norms[one] * norms)
            shares[same, same] = 0
            shares[one, same] = products[one, same] / norms[one] ** 2
            open_to_merge &= ~same
    return shares


def _keeps_zeros(readers: Sequence[np.ndarray]) -> np.ndarray:
    """Whether a merge of j into i leaves every zero of the readers: bool [inputs, inputs].

    Args:
      readers: kernels [..., inputs, outputs] with three axes; the first counts the places of an image or a kernel.
    """
    rows = np.concatenate([np.moveaxis(kernel, 1, 0).reshape(kernel.shape[1], -1) for kernel in readers], axis=1)
    nonzero = (rows != 0).astype(np.float32)
    return (1 - nonzero) @ nonzero.T == 0
