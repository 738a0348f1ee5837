"""The images of an evaluation: the first so many of a split, or, where it is sorted by class, from all over it."""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from rap_jax.config import require
from rap_jax.data import Dataset, Split, to_unit


class Sample(NamedTuple):
    """Images, clean.

    Attributes:
      images: float32 in [0, 1], [N, H, W, C].
      labels: int32, [N].
      num_classes: of the data set.
      class_names: name of each label.
      about: what results.json says of the data: the data set, the split, and a hash of these images.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    about: dict[str, Any]

    @property
    def words(self) -> str:
        """Which images these are: `first 1,000 test images of mnist`."""
        count, total = len(self.labels), self.about["num_images"][self.about["split"]]
        which = f"all {count:,}" if count == total else f"{self.about['which']} {count:,}"
        return f"{which} {self.about['split']} images of {self.about['name']}"


def take_sample(dataset: Dataset, split: str, num_images: int) -> Sample:
    """The first `num_images` of a split, as is usual; all for 0, or where there are no more.

    Where the images are sorted by class the first ones would be of few classes: then they are evenly spaced.

    Raises:
      ValueError: the split has no images.
    """
    whole: Split = {"test": dataset.test, "validation": dataset.validation}[split]
    total = len(whole.labels)
    require(total > 0, f"number of {split} images", total, "1 or more")
    count = min(num_images or total, total)
    is_sorted = bool((np.diff(np.asarray(whole.labels, np.int32)) >= 0).all()) and count < total
    chosen = np.arange(count) * total // count if is_sorted else np.arange(count)
    images = np.asarray(to_unit(np.asarray(whole.images)[chosen]))
    labels = np.asarray(whole.labels, np.int32)[chosen]
    names = dataset.class_names or tuple(str(label) for label in range(dataset.num_classes))
    content = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    which = "evenly spaced" if is_sorted else "first"
    about = dataset.describe() | {"split": split, "num_attacked": count, "which": which, "attacked_sha256": content}
    return Sample(images, labels, dataset.num_classes, names, about)
