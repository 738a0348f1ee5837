"""How many images a data set has, known without reading it."""

from collections.abc import Mapping
from typing import NamedTuple

from rap_jax.config import DataConfig, require

_DIGITS, _COLOURS = (28, 28, 1), (32, 32, 3)


class Sizes(NamedTuple):
    """Attributes: train, validation, test: images; image_shape: (H, W, C); num_classes."""

    train: int
    validation: int
    test: int
    image_shape: tuple[int, int, int]
    num_classes: int = 10


# Training images before validation is held out, test images, shape.
_KNOWN: Mapping[str, tuple[int, int, tuple[int, int, int]]] = {
    "mnist": (60_000, 10_000, _DIGITS),
    "mnist_5k": (4_000, 1_000, _DIGITS),
    "fashion_mnist": (60_000, 10_000, _DIGITS),
    "cifar10": (50_000, 10_000, _COLOURS),
    "cifar10_unverified": (50_000, 10_000, _COLOURS),  # if all of its files are as long as the official ones
    "svhn": (73_257, 26_032, _COLOURS),
}


def sizes_of(config: DataConfig) -> Sizes:
    """The sizes of the three splits. Of a data set with a fallback those of the one that is asked for.

    Raises:
      ValueError: they cannot be known without reading it, or a split would be empty.
    """
    require(config.dataset in _KNOWN, "dataset", config.dataset, f"one of known size: {', '.join(_KNOWN)}")
    num_train, num_test, shape = _KNOWN[config.dataset]
    num_held = round(num_train * config.validation_fraction)
    hint = f"a share that leaves both parts of {num_train} examples with at least one"
    require(0 < num_held < num_train, "validation_fraction", config.validation_fraction, hint)
    return Sizes(num_train - num_held, num_held, num_test, shape)
