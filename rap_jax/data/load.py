"""From a data configuration to a data set in memory, wherever its files are."""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from rap_jax.config import DataConfig, require
from rap_jax.data.dataset import Dataset, PooledImages, Split, TrainTest, content_hash, hold_out
from rap_jax.data.streamed import StreamedImages
from rap_jax.data.unprepared import load_cifar10_unverified, load_mnist_5k

# Data sets that TFDS prepares from raw files: where the builder is. Imported by name, and only if it is asked for: to
# import TFDS takes time that other runs can save.
_PREPARED: Mapping[str, str] = {
    "mnist": "rap_jax.data.builders:RapMnist",
    "fashion_mnist": "rap_jax.data.builders:RapFashionMnist",
    "cifar10": "rap_jax.data.builders:RapCifar10",
    "svhn": "rap_jax.data.builders:RapSvhn",
}
# Data sets that come complete with a Python package, and those that are read from `raw_data_dir` each time.
_PACKAGED: Mapping[str, Callable[[], TrainTest]] = {"mnist_5k": load_mnist_5k}
_DIRECT: Mapping[str, Callable[[str | None], TrainTest]] = {"cifar10_unverified": load_cifar10_unverified}
# What a packaged data set may stand in for: other images would not be a sample of what was asked for.
_SAMPLE_OF: Mapping[str, str] = {"mnist_5k": "mnist"}

_FOLDER = "folder:"
_FALLBACK_WARNING = "%s is NOT used: %s (%s images) takes its place. %s"


def load_dataset(config: DataConfig, *, seed: int, streamed: bool = False) -> Dataset:
    """Reads a data set, prepares it first if that has not been done, and holds out the validation split.

    Of `mnist`, `fashion_mnist`, `cifar10` and `svhn` the prepared copy in `data_dir` is read. If there is none it is
    prepared, from `raw_data_dir` if that is given, otherwise from the network. Without a network `fallback_dataset` is
    used instead if it is a sample of `dataset`, with a warning, and the result bears its name. `raw_data_dir` must hold
    the raw files whenever it is given, and excludes a fallback. `cifar10_unverified` is read from `raw_data_dir`,
    `folder:PATH` from PATH (see `image_folder.py`); `mnist_5k` needs no folder.

    Args:
      config: what to load, and from where.
      seed: of the validation split, 0 or more, unless `config` names another. It changes nothing else.
      streamed: the training images stay on disk (see `streamed.py`); of prepared data only.

    Returns:
      Three splits of uint8 images, [N, H, W, C], named after the data that is really there.

    Raises:
      ValueError: the data cannot be had (told within seconds without a network), is damaged, leaves a class without
        training images, or `config` asks for a data set that does not exist. The message says what to do.
    """
    _require_known(config)
    return _with_validation(config, seed, *_load_or_fall_back(config, streamed))


def load_datasets(config: DataConfig, *, seeds: Sequence[int]) -> tuple[Dataset, ...]:
    """The data sets that `load_dataset` gives for each of the seeds; read once, with one copy of the training images.

    Raises:
      ValueError: as `load_dataset`.
    """
    _require_known(config)
    name, data, digest = _load_or_fall_back(config, False)
    images = PooledImages(data.train.images, np.arange(len(data.train.labels)))
    shared: Any = data._replace(train=Split(images, data.train.labels))  # type: ignore[arg-type]  # as an array
    return tuple(_with_validation(config, seed, name, shared, digest) for seed in seeds)


def _with_validation(config: DataConfig, seed: int, name: str, data: TrainTest, digest: str) -> Dataset:
    """Holds out the validation split."""
    train, test, class_names = data
    fraction = config.validation_fraction
    seed = seed if config.validation_seed is None else config.validation_seed
    train, validation = hold_out(train, fraction, seed)
    if config.dataset.startswith(_FOLDER):
        _require_every_class(class_names, train=train, validation=validation, test=test)
    if isinstance(validation.images, StreamedImages | PooledImages):  # it is evaluated as a whole, and small
        validation = validation._replace(images=validation.images.read_all())
    return Dataset(name, train, validation, test, len(class_names), digest, class_names, fraction, seed)


def _require_known(config: DataConfig) -> None:
    known = (*_PREPARED, *_PACKAGED, *_DIRECT)
    is_known = config.dataset in known or config.dataset.startswith(_FOLDER)
    require(is_known, "dataset", config.dataset, f"one of {', '.join(known)}, {_FOLDER}PATH")
    fallback = config.fallback_dataset
    require(fallback is None or fallback in _PACKAGED, "fallback_dataset", fallback, f"None or {', '.join(_PACKAGED)}")


def _require_every_class(names: tuple[str, ...], **splits: Split) -> None:
    """Refuses what no network can learn; warns of what no number will tell."""
    absent = {name: np.setdiff1d(np.arange(len(names)), split.labels) for name, split in splits.items()}
    missing = {split: [names[label] for label in labels] for split, labels in absent.items() if len(labels)}
    untaught = missing.pop("train", [])
    hint = "one image or more of each, beside those held out for validation and test. Add images"
    require(not untaught, "classes without an image to learn from", untaught, hint)
    for split, classes in missing.items():
        logging.warning("The %s split has no image of %s, so its numbers do not tell of them.", split, classes)


def _load_or_fall_back(config: DataConfig, streamed: bool) -> tuple[str, TrainTest, str]:
    """The name of what is there, the data, and their hash."""
    if config.dataset not in _PREPARED:
        require(not streamed, "stream_data", streamed, f"False with dataset {config.dataset}, which is not prepared")
        name, data = _load_unprepared(config)
        return name, data, content_hash(data.train, data.test)
    from rap_jax.data.prepared import DownloadError

    fallback = config.fallback_dataset
    try:
        return config.dataset, *_load_prepared(config, streamed)
    except DownloadError as error:
        if fallback is None or _SAMPLE_OF.get(fallback) != config.dataset:
            raise
        data = _PACKAGED[fallback]()
        size = len(data.train.labels) + len(data.test.labels)
        logging.warning(_FALLBACK_WARNING, config.dataset, fallback, size, error)
    return fallback, data, content_hash(data.train, data.test)


def _load_unprepared(config: DataConfig) -> tuple[str, TrainTest]:
    if config.dataset in _PACKAGED:
        return config.dataset, _PACKAGED[config.dataset]()
    if config.dataset in _DIRECT:
        return config.dataset, _DIRECT[config.dataset](config.raw_data_dir)
    from rap_jax.data.image_folder import folder_name, load_image_folder

    raw = config.raw_data_dir
    require(raw is None, "raw_data_dir", raw, f"no such folder with dataset {config.dataset}, which names its own")
    path = config.dataset.removeprefix(_FOLDER)
    return folder_name(path), load_image_folder(path, config.image_size)


def _load_prepared(config: DataConfig, streamed: bool) -> tuple[TrainTest, str]:
    from rap_jax.data.prepared import prepare, prepared_path, read_prepared

    builder_class = pkgutil.resolve_name(_PREPARED[config.dataset])
    data_dir = Path(config.data_dir).expanduser().absolute()
    if config.raw_data_dir is not None:
        builder_class.find_raw(config.raw_data_dir)  # Who names a folder is told that it is wrong, used or not.
    if not prepared_path(builder_class, data_dir).exists():
        prepare(builder_class, data_dir, config.raw_data_dir)
    return read_prepared(builder_class, data_dir, streamed=streamed)
