"""A tiny TFDS data set for the tests of preparing and loading. TFDS allows each name once, hence this file."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rap_jax.config import DataConfig
from rap_jax.data import Dataset, Split, content_hash, load_dataset
from rap_jax.data.builders import ArrayBuilder
from rap_jax.data.dataset import make_split
from rap_jax.data.raw_files import RawFile


def tiny_arrays(num_examples: int) -> Split:
    generator = np.random.default_rng(num_examples)
    images = generator.integers(0, 256, (num_examples, 4, 5, 3), dtype=np.uint8)
    return make_split(images, np.arange(num_examples) % 3)


TRAIN, TEST = tiny_arrays(60), tiny_arrays(9)


def raw_bytes(train: Split = TRAIN, test: Split = TEST) -> bytes:
    """What is in the raw file."""
    file = io.BytesIO()
    np.savez(file, x=train.images, y=train.labels, test_x=test.images, test_y=test.labels)
    return file.getvalue()


def raw_file(data: bytes, url: str = "http://example.invalid/files/tiny.npz") -> RawFile:
    return RawFile(url, hashlib.sha256(data).hexdigest())


class RapTestTiny(ArrayBuilder):
    """60 training and 9 test images, in one raw file; their content hash is known."""

    SHAPE = (4, 5, 3)
    CLASS_NAMES = ("ant", "bee", "cat")
    CONTENT_SHA256 = content_hash(TRAIN, TEST)
    FILES = (raw_file(raw_bytes()),)

    @staticmethod
    def parse(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
        arrays = np.load(io.BytesIO(contents["tiny.npz"]))
        return Split(arrays["x"], arrays["y"]), Split(arrays["test_x"], arrays["test_y"])


class RapTestTinyStored(RapTestTiny):
    """The same; their content hash is not known in advance."""

    CONTENT_SHA256 = None


TINY = "tiny_dataset:RapTestTiny"  # as the table in load.py has it


def write_raw(folder: Path, train: Split = TRAIN) -> str:
    """Writes the raw file and returns its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.npz").write_bytes(raw_bytes(train))
    return str(folder)


def load_tiny(data_dir: str, raw: str | None = None, fallback: str | None = None, seed: int = 0) -> Dataset:
    config = DataConfig(dataset="tiny", data_dir=data_dir, raw_data_dir=raw, fallback_dataset=fallback)
    return load_dataset(config, seed=seed)


def prepared_folder(data_dir: str | Path) -> Path:
    return Path(data_dir) / "rap_test_tiny" / "1.0.0"


def assert_same(actual: Split, expected: Split) -> None:
    np.testing.assert_array_equal(actual.images, expected.images)
    np.testing.assert_array_equal(actual.labels, expected.labels)
    assert (actual.images.dtype, actual.labels.dtype) == (np.uint8, np.int32)
