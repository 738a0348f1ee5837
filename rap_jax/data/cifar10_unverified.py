"""`cifar10_unverified`: files in the layout of CIFAR-10's binary version that are not the official ones.

A copy whose images went through JPEG is one. Read directly each time: there is no digest that a prepared copy could be
checked against.
"""

from pathlib import Path

from absl import logging

from rap_jax.data.dataset import TrainTest
from rap_jax.data.raw_cifar10 import CLASS_NAMES, FILES, FOLDER, parse_batches

_WARNING = "cifar10_unverified: the files in %s are not checked, so results on them are not those of CIFAR-10."


def find_batches(folder: str | Path) -> Path | None:
    """Returns `folder`, or its sub-folder `cifar-10-batches-bin`, whichever holds all six files; None if neither."""
    folder = Path(folder).expanduser()
    places = (folder, folder / FOLDER)
    return next((place for place in places if all((place / name).is_file() for name in FILES)), None)


def load_cifar10_unverified(folder: str | None) -> TrainTest:
    """Reads the six files and warns that results cannot be compared.

    Args:
      folder: holds the files, or has a sub-folder `cifar-10-batches-bin` that does.

    Returns:
      The training data, the five batches in turn, and the test data, each [N, 32, 32, 3]: as many as are there.

    Raises:
      ValueError: no folder is given, files are missing, or one is not in the layout; the message says which.
    """
    needed = f"--raw_data_dir=FOLDER with {', '.join(FILES)} in it or in its sub-folder {FOLDER}"
    if folder is None:
        raise ValueError(f"cifar10_unverified is not downloaded: it needs {needed}")
    place = find_batches(folder)
    if place is None:
        raise ValueError(f"raw_data_dir {folder} does not hold all files: cifar10_unverified needs {needed}")
    logging.warning(_WARNING, place)
    try:
        train, test = parse_batches({name: (place / name).read_bytes() for name in FILES})
    except (OSError, ValueError) as error:
        raise ValueError(f"The files in {place} cannot be read as CIFAR-10: {error}") from error
    return TrainTest(train, test, CLASS_NAMES)
