"""One network in three forms: with all its weights, with zeros in their place, and without what counts for nothing.

    forms, refused = forms_of(model, weights)
    forms["dense"], forms["pruned"], forms["compacted"]

The dense form has the shapes of the network as it was trained, and a random number of the size of its neighbours in
place of each zero: costs depend on shapes and on zeros, never on what the other numbers are.
"""

import gzip
import io
from typing import Any, NamedTuple

import jax
import numpy as np

from rap_jax.compaction import compact
from rap_jax.digest import named_leaves
from rap_jax.models import Model
from rap_jax.state import Weights

FORMS = ("dense", "pruned", "compacted")


class Form(NamedTuple):
    """A network. Attributes: model: as pure functions; weights: of that model, numpy arrays."""

    model: Model
    weights: Weights


class FileSize(NamedTuple):
    """Bytes of a file. Attributes: plain; gzipped."""

    plain: int
    gzipped: int


def forms_of(model: Model, weights: Weights) -> tuple[dict[str, Form], str]:
    """The forms by name, and why there is no compacted one ('' where there is).

    Args:
      model: of `create_model`.
      weights: after the cut, arrays of any kind.
    """
    weights = jax.tree.map(np.asarray, weights)
    # Both are one model, so that their program is compiled once.
    forms = {"dense": Form(model, _without_zeros(weights)), "pruned": Form(model, weights)}
    try:
        small = compact(model, *weights)
    except ValueError as error:  # nothing would be left of a layer
        return forms, str(error)
    return forms | {"compacted": Form(small.model, Weights(small.params, small.batch_stats))}, ""


def file_size(weights: Weights) -> FileSize:
    """Of the weights, with the statistics of BatchNorm, as float32 arrays in an `.npz` file."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {path: np.asarray(leaf) for path, leaf in named_leaves(weights)}
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    return FileSize(len(content), len(gzip.compress(content, compresslevel=6)))


def _without_zeros(weights: Weights) -> Weights:
    generator = np.random.default_rng(0)

    def fill(leaf: Any) -> np.ndarray:
        kept = leaf[leaf != 0]
        scale = float(np.sqrt(np.mean(np.square(kept)))) if kept.size else 0.01
        drawn = scale * generator.choice([-1, 1], leaf.shape) * generator.uniform(0.1, 1, leaf.shape)
        return np.where(leaf == 0, drawn, leaf).astype(leaf.dtype)

    return weights._replace(params=jax.tree.map(fill, weights.params))
