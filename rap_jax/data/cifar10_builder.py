"""TFDS builder of CIFAR-10, without TensorFlow. The digest of the archive is the one registered with TFDS."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from rap_jax.data.array_builder import ArrayBuilder
from rap_jax.data.cifar10_unverified import find_batches
from rap_jax.data.dataset import Split
from rap_jax.data.raw_cifar10 import CLASS_NAMES, FILES, FOLDER, parse_batches
from rap_jax.data.raw_files import RawFile, unpack

_ARCHIVE = RawFile(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


class RapCifar10(ArrayBuilder):
    """50,000 training and 10,000 test images of ten kinds of things, 32x32x3. Registered with TFDS as `rap_cifar10`."""

    SHAPE = (32, 32, 3)
    CLASS_NAMES = CLASS_NAMES
    FILES = (_ARCHIVE,)

    @classmethod
    def find_raw(cls, folder: str | Path) -> Mapping[str, str | Path]:
        """Returns the path of the archive, or raises a ValueError that says what else can be done with the folder."""
        try:
            return super().find_raw(folder)
        except ValueError as error:
            if find_batches(folder) is None:
                raise
            hint = "Its unpacked files cannot be checked; --dataset=cifar10_unverified reads them as they are."
            raise ValueError(f"{error}. {hint}") from None

    @staticmethod
    def parse(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
        """Returns the training data, the five batches in turn, and the test data."""
        # Unpacked as a whole, since a search in a compressed archive would unpack it once per file.
        with tarfile.open(fileobj=io.BytesIO(unpack(contents[_ARCHIVE.name])), mode="r:") as archive:
            return parse_batches({name: _member(archive, f"{FOLDER}/{name}") for name in FILES})


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ValueError(f"{_ARCHIVE.name} lacks the file {name}; expected the archive of {_ARCHIVE.url}")
    return file.read()
