"""TFDS builders without TensorFlow, for data sets that fit in memory.

TFDS prepares a data set without TensorFlow only if images are stored by `features.Tensor` (encoding an `Image` needs
TensorFlow), the file format is array_record, and `download` is used instead of `download_and_extract`. A subclass of
`ArrayBuilder` names the raw files; an entry in the table of `load.py` makes the data set available.

Digests of MNIST are of the uncompressed bytes, so that a file which was unpacked or compressed again still counts as
official. Those of Fashion-MNIST, CIFAR-10 and SVHN are of the packed files, as registered with TFDS; other packings are
refused. SVHN comes without the `extra` training images.

References: LeCun et al., 1998, http://yann.lecun.com/exdb/mnist/; Xiao et al., 2017, https://arxiv.org/abs/1708.07747;
Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html; Netzer et al., 2011,
http://ufldl.stanford.edu/housenumbers/ ("Format 2").
"""

import abc
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from etils import epath

from rap_jax.config import require
from rap_jax.data.dataset import Split, content_hash, make_split
from rap_jax.data.raw_files import (
    CIFAR10_CLASS_NAMES,
    CIFAR10_FILES,
    CIFAR10_FOLDER,
    RawFile,
    find_files,
    parse_cifar10_files,
    parse_idx_files,
    read_verified,
    unpack,
)
from rap_jax.data.unprepared import find_cifar10_files

_STORED_HASH = "content_sha256"


class ArrayBuilder(tfds.core.GeneratorBasedBuilder):
    """Prepares two splits, `train` and `test`, of `image` (uint8, [H, W, C]) and `label`, in the order of the files."""

    VERSION = tfds.core.Version("1.0.0")  # of the prepared form
    SHAPE: ClassVar[tuple[int, int, int]]  # height, width and channels
    CLASS_NAMES: ClassVar[tuple[str, ...]]  # of each label, from label 0 on
    FILES: ClassVar[tuple[RawFile, ...]]  # the official files
    # `content_hash` of the official data. If it is None, that of the verified files is stored with the prepared copy.
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


_MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class RapMnist(ArrayBuilder):
    """60,000 training and 10,000 test images of digits, 28x28x1. Registered with TFDS as `rap_mnist`."""

    SHAPE = (28, 28, 1)
    CLASS_NAMES = tuple("0123456789")
    FILES = tuple(RawFile(_MNIST_URL + name, sha256, digest_of_unpacked=True) for name, sha256 in _MNIST_SHA256.items())
    CONTENT_SHA256 = "ceda791d3e53beaf95f8e213c414aa4d975006504eff93f785d685ecea3e892c"
    parse = staticmethod(parse_idx_files)


_FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


class RapFashionMnist(ArrayBuilder):
    """60,000 training and 10,000 test images of clothes, 28x28x1. Registered with TFDS as `rap_fashion_mnist`."""

    SHAPE = (28, 28, 1)
    CLASS_NAMES = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    FILES = tuple(RawFile(_FASHION_MNIST_URL + name, sha256) for name, sha256 in _FASHION_MNIST_SHA256.items())
    parse = staticmethod(parse_idx_files)


_CIFAR10_ARCHIVE = RawFile(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


class RapCifar10(ArrayBuilder):
    """50,000 training and 10,000 test images of ten kinds of things, 32x32x3. Registered with TFDS as `rap_cifar10`."""

    SHAPE = (32, 32, 3)
    CLASS_NAMES = CIFAR10_CLASS_NAMES
    FILES = (_CIFAR10_ARCHIVE,)

    @classmethod
    def find_raw(cls, folder: str | Path) -> Mapping[str, str | Path]:
        """Returns the path of the archive, or raises a ValueError that says what else can be done with the folder."""
        try:
            return super().find_raw(folder)
        except ValueError as error:
            if find_cifar10_files(folder) is None:
                raise
            hint = "Its unpacked files cannot be checked; --dataset=cifar10_unverified reads them as they are."
            raise ValueError(f"{error}. {hint}") from None

    @staticmethod
    def parse(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
        """Returns the training data, the five batches in turn, and the test data."""
        # Unpacked as a whole, since a search in a compressed archive would unpack it once per file.
        with tarfile.open(fileobj=io.BytesIO(unpack(contents[_CIFAR10_ARCHIVE.name])), mode="r:") as archive:
            return parse_cifar10_files({name: _member(archive, f"{CIFAR10_FOLDER}/{name}") for name in CIFAR10_FILES})


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ValueError(
            f"{_CIFAR10_ARCHIVE.name} lacks the file {name}; expected the archive of {_CIFAR10_ARCHIVE.url}"
        )
    return file.read()


_SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
_SVHN_SHA256 = {
    "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}


class RapSvhn(ArrayBuilder):
    """73,257 training and 26,032 test images of house numbers, 32x32x3. Registered with TFDS as `rap_svhn`."""

    SHAPE = (32, 32, 3)
    CLASS_NAMES = tuple("0123456789")
    FILES = tuple(RawFile(_SVHN_URL + name, sha256) for name, sha256 in _SVHN_SHA256.items())

    @staticmethod
    def parse(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
        """Returns the training and test data."""
        train, test = (parse_mat(contents[name], name) for name in _SVHN_SHA256)
        return train, test


def parse_mat(data: bytes, name: str) -> Split:
    """Images, uint8 [N, H, W, 3], and labels, int32 in 0..9, [N], of a MATLAB file, which an error calls `name`.

    It holds `X`, uint8 [H, W, 3, N], and `y`, [N, 1], in which the label 10 stands for the digit 0.

    Raises:
      ValueError: a label is not in 1..10.
    """
    arrays = scipy.io.loadmat(io.BytesIO(data), variable_names=["X", "y"])
    labels = arrays["y"].reshape(-1)
    strange = labels[~np.isin(labels, np.arange(1, 11))]
    require(not len(strange), f"labels in {name}", strange[:5].tolist(), "whole numbers from 1 to 10")
    return make_split(arrays["X"].transpose(3, 0, 1, 2), labels % 10)
