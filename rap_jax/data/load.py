"""From a data configuration to a data set in memory, wherever its files are."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging

from rap_jax.config import DataConfig, require
from rap_jax.data.dataset import Dataset, Split, content_hash, hold_out
from rap_jax.data.mnist_5k import load_mnist_5k

if TYPE_CHECKING:
    from rap_jax.data.array_builder import ArrayBuilder


def _mnist_builder() -> "type[ArrayBuilder]":
    from rap_jax.data.mnist_builder import RapMnist  # Here, since importing TFDS takes time that other runs can save.

    return RapMnist


# Data sets that TFDS prepares from raw files, and those that come complete with a Python package.
_PREPARED: Mapping[str, "Callable[[], type[ArrayBuilder]]"] = {"mnist": _mnist_builder}
_PACKAGED: Mapping[str, Callable[[], tuple[Split, Split, int]]] = {"mnist_5k": load_mnist_5k}

_FALLBACK_WARNING = "%s is NOT used: %s (%s images) takes its place. %s"


def load_dataset(config: DataConfig, *, seed: int) -> Dataset:
    """Reads a data set, prepares it first if that has not been done, and holds out the validation split.

    Of `mnist` the prepared copy in `data_dir` is read. If there is none it is prepared, from `raw_data_dir` if that is
    given, otherwise from the network. Without a network `fallback_dataset` is used instead, with a warning, and the
    result bears its name. `raw_data_dir` must hold the raw files whenever it is given, and excludes a fallback;
    `mnist_5k` needs neither folder.

    Args:
      config: what to load, and from where.
      seed: of the validation split, 0 or more. It changes nothing else.

    Returns:
      Three splits of uint8 images, [N, H, W, C], named after the data that is really there.

    Raises:
      ValueError: the data cannot be had (told within seconds without a network), is damaged, or `config` asks for a
        data set that does not exist. The message says what to do.
    """
    known = (*_PREPARED, *_PACKAGED)
    require(config.dataset in known, "dataset", config.dataset, f"one of {', '.join(known)}")
    fallback = config.fallback_dataset
    require(fallback is None or fallback in _PACKAGED, "fallback_dataset", fallback, f"None or {', '.join(_PACKAGED)}")
    name, (train, test, num_classes) = _load_or_fall_back(config)
    digest = content_hash(train, test)
    train, validation = hold_out(train, config.validation_fraction, seed)
    return Dataset(name, train, validation, test, num_classes, digest)


def _load_or_fall_back(config: DataConfig) -> tuple[str, tuple[Split, Split, int]]:
    if config.dataset in _PACKAGED:
        return config.dataset, _PACKAGED[config.dataset]()
    from rap_jax.data.prepared import DownloadError

    try:
        return config.dataset, _load_prepared(config)
    except DownloadError as error:
        if config.fallback_dataset is None:
            raise
        train, test, num_classes = _PACKAGED[config.fallback_dataset]()
        size = len(train.labels) + len(test.labels)
        logging.warning(_FALLBACK_WARNING, config.dataset, config.fallback_dataset, size, error)
    return config.fallback_dataset, (train, test, num_classes)


def _load_prepared(config: DataConfig) -> tuple[Split, Split, int]:
    from rap_jax.data.prepared import prepare, prepared_path, read_prepared

    builder_class = _PREPARED[config.dataset]()
    data_dir = Path(config.data_dir).expanduser().absolute()
    if config.raw_data_dir is not None:
        builder_class.find_raw(config.raw_data_dir)  # Who names a folder is told that it is wrong, used or not.
    if not prepared_path(builder_class, data_dir).exists():
        prepare(builder_class, data_dir, config.raw_data_dir)
    return (*read_prepared(builder_class, data_dir), builder_class.NUM_CLASSES)
