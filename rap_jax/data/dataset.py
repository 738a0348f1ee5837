"""A data set in memory, its content hash, and its stratified validation split."""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from rap_jax.config import require
from rap_jax.data.streamed import StreamedImages


class Split(NamedTuple):
    """Images with their labels, on the host."""

    # uint8 in 0..255, [N, H, W, C]; of training images also `StreamedImages`, on disk, or `PooledImages`, shared
    images: np.ndarray
    labels: np.ndarray  # int32 in 0..num_classes-1, [N]


class TrainTest(NamedTuple):
    """A data set before validation is held out."""

    train: Split
    test: Split
    class_names: tuple[str, ...]  # of each label, from label 0 on


class PooledImages:
    """Some images of an array that several splits share; takes the place of an array in a `Split`."""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, pool: np.ndarray, rows: np.ndarray):
        """Of all images of the pool, uint8 [M, H, W, C], those in the `rows` [N]."""
        self.pool, self.rows = pool, rows
        self.shape = (len(rows), *pool.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: np.ndarray) -> "PooledImages":
        """Those that a mask or an array of numbers names; nothing is copied."""
        return PooledImages(self.pool, self.rows[chosen])

    def read_all(self) -> np.ndarray:
        """All images, uint8 [N, H, W, C]."""
        return self.pool[self.rows]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three disjoint splits. Train and validation share the official training images; test is the official one."""

    name: str  # of the data that was loaded, such as `mnist`, or `mnist_5k` after a fallback
    train: Split
    validation: Split  # selects the checkpoint
    test: Split  # read once, for the reported numbers
    num_classes: int
    sha256: str  # `content_hash` of training and test data, before validation was held out
    class_names: tuple[str, ...] | None = None  # of each label, from label 0 on; None if unknown
    validation_fraction: float | None = None  # held-out share of the training data; None if it was a split of its own
    validation_seed: int | None = None  # of that choice

    def describe(self) -> dict[str, Any]:
        """Name, hash, shapes and sizes for results.json, in types that JSON has."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "name": self.name,
            "sha256": self.sha256,
            "image_shape": list(self.train.images.shape[1:]),
            "num_classes": self.num_classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "num_images": {name: len(split.labels) for name, split in splits.items()},
            "validation_fraction": self.validation_fraction,
            "validation_seed": self.validation_seed,
        }


def make_split(images: np.ndarray, labels: np.ndarray) -> Split:
    """Contiguous images, uint8 [N, H, W, C], and as int32 their labels, whole numbers of 0 or more, [N].

    Raises:
      ValueError: a shape or type is not as above, or the lengths differ.
    """
    require(images.dtype == np.uint8, "dtype of images", images.dtype, "uint8")
    require(images.ndim == 4, "shape of images", images.shape, "[N, H, W, C]")
    require(labels.shape == images.shape[:1], "shape of labels", labels.shape, f"{images.shape[:1]}, one per image")
    return Split(np.ascontiguousarray(images), np.ascontiguousarray(labels, dtype=np.int32))


def content_hash(train: Split, test: Split) -> str:
    """SHA-256, in hex, of the shapes and values of both splits; the order of the examples counts."""
    digest = hashlib.sha256()
    for array in (*train, *test):
        parts = array.chunks() if isinstance(array, StreamedImages) else (array,)
        add_to_hash(digest, parts, array.dtype, array.shape)
    return digest.hexdigest()


def add_to_hash(
    digest: "hashlib._Hash", parts: Iterable[np.ndarray], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    """One array of a `content_hash`, which may come in parts along its first axis."""
    dtype = dtype.newbyteorder("<")
    digest.update(f"{dtype.str}{shape}".encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part, dtype=dtype).data)


def hold_out(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Takes a stratified validation split out of the training data.

    Validation gets round(N * fraction) examples, and of a class with n examples n * fraction, rounded up or down. The
    choice depends on `seed` and the labels only. Each example lands in exactly one of the two parts, and both keep the
    order of `train`.

    Args:
      fraction: share to hold out, in (0, 1).
      seed: whole number of 0 or more for `numpy.random.default_rng`.

    Returns:
      What is left of the training data, and the validation data.

    Raises:
      ValueError: `fraction` or `seed` is out of range, or one of the two would be empty.
    """
    require(0 < fraction < 1, "fraction", fraction, "a share of the training set in (0, 1)")
    require(seed >= 0, "seed", seed, "a whole number of 0 or more")
    held, generator = np.zeros(train.labels.shape, bool), np.random.default_rng(seed)
    classes, sizes = np.unique(train.labels, return_counts=True)
    for label, count in zip(classes, _shares(sizes, fraction), strict=True):
        held[generator.permutation(np.flatnonzero(train.labels == label))[:count]] = True
    hint = f"a share that leaves both parts of {len(held)} examples with at least one"
    require(bool(0 < held.sum() < len(held)), "fraction", fraction, hint)
    return Split(*(array[~held] for array in train)), Split(*(array[held] for array in train))


def _shares(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Rounds sizes * fraction to whole numbers of the right sum: the largest remainders are rounded up."""
    counts = np.floor(sizes * fraction).astype(int)
    left_over = round(int(sizes.sum()) * fraction) - int(counts.sum())
    counts[np.argsort(counts - sizes * fraction, kind="stable")[:left_over]] += 1
    return counts
