"""TFDS builder for image data sets that fit in memory, without TensorFlow.

TFDS prepares a data set without TensorFlow only if images are stored by `features.Tensor` (encoding an `Image` needs
TensorFlow), the file format is array_record, and `download` is used instead of `download_and_extract`. A subclass
(see `mnist_builder.py`) says what the raw files are; add it to the table in `load.py` and the data set is available.
"""

import abc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from rap_jax.data.dataset import Split


class ArrayBuilder(tfds.core.GeneratorBasedBuilder):
    """Prepares two splits, `train` and `test`, of `image` (uint8, [H, W, C]) and `label`, in the order of the files.

    Attributes:
      VERSION: version of the prepared form.
      SHAPE: height, width and channels.
      NUM_CLASSES: number of labels.
      CONTENT_SHA256: `content_hash` of the official data.
      URLS: where each raw file is, by its name.
    """

    VERSION = tfds.core.Version("1.0.0")
    SHAPE: ClassVar[tuple[int, int, int]]
    NUM_CLASSES: ClassVar[int]
    CONTENT_SHA256: ClassVar[str]
    URLS: ClassVar[Mapping[str, str]]
    pkg_dir_path = epath.Path(__file__).parent  # TFDS looks for metadata in a folder per data set; we have none.

    def __init__(self, *, raw_data_dir: str | Path | None = None, **kwargs: Any) -> None:
        """Raw files come from `raw_data_dir`, or are downloaded if it is None. TFDS takes the other arguments."""
        self._raw_data_dir = raw_data_dir
        super().__init__(**{"file_format": "array_record", **kwargs})

    @staticmethod
    @abc.abstractmethod
    def find_raw(folder: str | Path) -> Mapping[str, str | Path]:
        """Returns the path of each raw file, or raises a ValueError that lists those missing."""

    @staticmethod
    @abc.abstractmethod
    def read_raw(paths: Mapping[str, str | Path]) -> tuple[Split, Split]:
        """Returns the training and test data, or raises a ValueError that names a damaged file."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=self.SHAPE, dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=self.NUM_CLASSES),
        }
        features_dict = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features_dict, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = self._raw_data_dir
        paths = dl_manager.download(dict(self.URLS)) if folder is None else self.find_raw(folder)
        train, test = self.read_raw(paths)
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(*split, strict=True)):
            yield index, {"image": image, "label": int(label)}
