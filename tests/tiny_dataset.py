"""A tiny TFDS data set for the tests of preparing and loading. TFDS allows each name once, hence this file."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from rap_jax.config import DataConfig
from rap_jax.data import Dataset, Split, content_hash, load_dataset
from rap_jax.data.array_builder import ArrayBuilder
from rap_jax.data.dataset import make_split


def tiny_arrays(num_examples: int) -> Split:
    generator = np.random.default_rng(num_examples)
    images = generator.integers(0, 256, (num_examples, 4, 5, 3), dtype=np.uint8)
    return make_split(images, np.arange(num_examples) % 3)


TRAIN, TEST = tiny_arrays(60), tiny_arrays(9)


class RapTestTiny(ArrayBuilder):
    """60 training and 9 test images, in one raw file."""

    SHAPE = (4, 5, 3)
    NUM_CLASSES = 3
    CONTENT_SHA256 = content_hash(TRAIN, TEST)
    URLS: ClassVar = {"tiny.npz": "http://example.invalid/files/tiny.npz"}

    @staticmethod
    def find_raw(folder: str | Path) -> Mapping[str, str | Path]:
        path = Path(folder) / "tiny.npz"
        if not path.is_file():
            raise ValueError(f"{folder} lacks tiny.npz")
        return {"tiny.npz": path}

    @staticmethod
    def read_raw(paths: Mapping[str, str | Path]) -> tuple[Split, Split]:
        arrays = np.load(io.BytesIO(Path(paths["tiny.npz"]).read_bytes()))
        return Split(arrays["x"], arrays["y"]), Split(arrays["test_x"], arrays["test_y"])


def write_raw(folder: Path, train: Split = TRAIN, test: Split = TEST) -> str:
    """Writes the raw file and returns its folder."""
    folder.mkdir(exist_ok=True)
    np.savez(folder / "tiny.npz", x=train.images, y=train.labels, test_x=test.images, test_y=test.labels)
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
