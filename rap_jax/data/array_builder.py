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

from rap_jax.data.dataset import Split, content_hash
from rap_jax.data.raw_files import RawFile, find_files, read_verified

_STORED_HASH = "content_sha256"


class ArrayBuilder(tfds.core.GeneratorBasedBuilder):
    """Prepares two splits, `train` and `test`, of `image` (uint8, [H, W, C]) and `label`, in the order of the files.

    Attributes:
      VERSION: version of the prepared form.
      SHAPE: height, width and channels.
      CLASS_NAMES: name of each label, from label 0 on.
      FILES: the official files.
      CONTENT_SHA256: `content_hash` of the official data; None if it is not known in advance. It is then taken from the
        verified files when the copy is prepared, and stored with it.
    """

    VERSION = tfds.core.Version("1.0.0")
    SHAPE: ClassVar[tuple[int, int, int]]
    CLASS_NAMES: ClassVar[tuple[str, ...]]
    FILES: ClassVar[tuple[RawFile, ...]]
    CONTENT_SHA256: ClassVar[str | None] = None
    pkg_dir_path = epath.Path(__file__).parent  # TFDS looks for metadata in a folder per data set; we have none.

    def __init__(self, *, raw_data_dir: str | Path | None = None, **kwargs: Any) -> None:
        """Raw files come from `raw_data_dir`, or are downloaded if it is None. TFDS takes the other arguments."""
        self._raw_data_dir = raw_data_dir
        super().__init__(**{"file_format": "array_record", **kwargs})

    @classmethod
    def find_raw(cls, folder: str | Path) -> Mapping[str, str | Path]:
        """Returns the path of each raw file by its name, or raises a ValueError that lists those missing."""
        return find_files(cls.FILES, folder)

    @staticmethod
    @abc.abstractmethod
    def parse(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
        """Returns the training and test data, from the verified bytes of each raw file, by its name."""

    @property
    def expected_hash(self) -> str | None:
        """`content_hash` that the prepared copy must have; None if the one that was stored with it is gone."""
        return self.CONTENT_SHA256 or self.info.metadata.get(_STORED_HASH)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=self.SHAPE, dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=len(self.CLASS_NAMES)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = self._raw_data_dir
        urls = {file.name: file.url for file in self.FILES}
        paths = dl_manager.download(urls) if folder is None else self.find_raw(folder)
        # Verified here even if downloaded: TFDS checks only the digests that it has registered.
        train, test = self.parse({file.name: read_verified(paths[file.name], file) for file in self.FILES})
        self.info.metadata[_STORED_HASH] = content_hash(train, test)
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(*split, strict=True)):
            yield index, {"image": image, "label": int(label)}
