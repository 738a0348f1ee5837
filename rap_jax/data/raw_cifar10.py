"""The binary version of CIFAR-10: records of one label and one image.

Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html ("Binary version").
"""

from collections.abc import Mapping

import numpy as np

from rap_jax.config import require
from rap_jax.data.dataset import Split, make_split

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
FILES = (*TRAIN_FILES, TEST_FILE)

_RECORD_BYTES = 1 + 3 * 32 * 32


def parse_batches(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
    """Parses the six files.

    Args:
      contents: the bytes of each file, by the names in `FILES`.

    Returns:
      The training data, the five batches in turn, and the test data, each [N, 32, 32, 3] with labels [N].

    Raises:
      ValueError: a file holds no whole number of records, or a label above 9; the message names it.
    """
    batches = [parse_records(contents[name], name) for name in TRAIN_FILES]
    train = Split(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))
    return train, parse_records(contents[TEST_FILE], TEST_FILE)


def parse_records(data: bytes, name: str) -> Split:
    """Parses one file.

    Args:
      data: 3073 bytes per example: the label, then the red, the green and the blue plane, each row by row.
      name: what to call the data in an error.

    Returns:
      Images, uint8 [N, 32, 32, 3], and labels, int32 in 0..9, [N].

    Raises:
      ValueError: there is no whole number of records, or none, or a label is above 9.
    """
    whole = len(data) > 0 and len(data) % _RECORD_BYTES == 0
    require(whole, f"number of bytes in {name}", len(data), f"a multiple of {_RECORD_BYTES}, and not 0")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD_BYTES)
    labels = records[:, 0]
    require(bool(labels.max() < 10), f"largest label in {name}", int(labels.max()), "labels from 0 to 9")
    return make_split(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)
