"""Tests of Fashion-MNIST, CIFAR-10 and SVHN from raw files to memory, on small files in the official layouts."""

import dataclasses
import hashlib
import logging
import pkgutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from raw_data import Example, cifar10_archive, cifar10_batches, idx_files, random_images, svhn_mat
from tiny_dataset import assert_same

from rap_jax.config import DataConfig
from rap_jax.data import Dataset, content_hash, load, load_dataset
from rap_jax.data.dataset import make_split

WRITERS: dict[str, Callable[[Example, Example], dict[str, bytes]]] = {
    "fashion_mnist": idx_files,
    "cifar10": lambda train, test: cifar10_archive(cifar10_batches(train, test)),
    "svhn": lambda train, test: {"train_32x32.mat": svhn_mat(*train), "test_32x32.mat": svhn_mat(*test)},
}


@pytest.fixture(params=list(WRITERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def splits(name: str) -> tuple[Example, Example]:
    shape = (28, 28, 1) if name == "fashion_mnist" else (32, 32, 3)
    return random_images(40, shape), random_images(10, shape, seed=1)


@pytest.fixture
def raw(name: str, splits: tuple[Example, Example], tmp_path: Path) -> Path:
    return write(tmp_path / "raw", WRITERS[name](*splits))


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return folder


def accept(monkeypatch: pytest.MonkeyPatch, name: str, raw: Path) -> None:
    """Makes the digests of the files in `raw` the official ones."""
    builder = pkgutil.resolve_name(load._PREPARED[name])
    digest = lambda file: hashlib.sha256((raw / file.name).read_bytes()).hexdigest()
    monkeypatch.setattr(
        builder, "FILES", tuple(dataclasses.replace(file, sha256=digest(file)) for file in builder.FILES)
    )


def load_here(name: str, tmp_path: Path, raw: Path | None) -> Dataset:
    given = None if raw is None else str(raw)
    return load_dataset(DataConfig(dataset=name, data_dir=str(tmp_path / "prepared"), raw_data_dir=given), seed=0)


def test_the_official_files_come_through_tfds_unchanged(
    name: str, splits: tuple[Example, Example], raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(monkeypatch, name, raw)
    train, test = (make_split(*split) for split in splits)
    for given in (raw, None):  # the second time the prepared copy is enough
        data = load_here(name, tmp_path, given)
        assert_same(data.test, test)
        assert (data.name, data.num_classes, data.sha256) == (name, 10, content_hash(train, test))
        assert data.class_names is not None and len(data.class_names) == 10
        assert (len(data.train.labels), len(data.validation.labels)) == (36, 4)
    seen = {image.tobytes() for split in (data.train, data.validation) for image in split.images}
    assert seen == {image.tobytes() for image in train.images}


def test_other_files_under_the_official_names_are_refused(name: str, raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{raw}.* is damaged or another file: .*expected [0-9a-f]{{64}}, got"):
        load_here(name, tmp_path, raw)
    assert not list((tmp_path / "prepared").glob("rap_*/1*"))


def test_a_cifar10_archive_that_lacks_a_batch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = cifar10_batches(random_images(10, (32, 32, 3)), random_images(2, (32, 32, 3)))
    del members["data_batch_4.bin"]
    raw = write(tmp_path / "raw", cifar10_archive(members))
    accept(monkeypatch, "cifar10", raw)
    with pytest.raises(ValueError, match="cifar-10-binary.tar.gz lacks the file cifar-10-batches-bin/data_batch_4.bin"):
        load_here("cifar10", tmp_path, raw)


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_unverified_cifar10_is_read_as_it_is_with_a_warning(
    below: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, test = random_images(20, (32, 32, 3)), random_images(4, (32, 32, 3), seed=1)
    folder = write(tmp_path / "copy" / below, cifar10_batches(train, test))
    with caplog.at_level(logging.WARNING, logger="absl"):
        data = load_here("cifar10_unverified", tmp_path, tmp_path / "copy")
    (record,) = caplog.records
    assert f"the files in {folder} are not checked" in record.getMessage()
    assert (data.name, data.num_classes) == ("cifar10_unverified", 10)
    assert data.class_names is not None and data.class_names[3] == "cat"
    assert_same(data.test, make_split(*test))
    assert data.sha256 == content_hash(make_split(*train), make_split(*test))
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("problem", ["nothing given", "a file is missing", "a file is cut", "no folder"])
def test_unverified_cifar10_says_what_it_needs(problem: str, tmp_path: Path) -> None:
    examples = random_images(5, (32, 32, 3))
    folder = write(tmp_path / "copy", cifar10_batches(examples, examples))
    if problem == "a file is missing":
        (folder / "data_batch_5.bin").unlink()
    elif problem == "a file is cut":
        (folder / "data_batch_5.bin").write_bytes(bytes(3072))
    given = {"nothing given": None, "no folder": tmp_path / "none"}.get(problem, folder)
    expected = r"data_batch_5.bin.*3073" if problem == "a file is cut" else r"--raw_data_dir=FOLDER with data_batch_1"
    with pytest.raises(ValueError, match=expected) as error:
        load_here("cifar10_unverified", tmp_path, given)
    assert given is None or str(given) in str(error.value)


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_unpacked_cifar10_is_pointed_to_the_unverified_data_set(below: str, tmp_path: Path) -> None:
    examples = random_images(5, (32, 32, 3))
    write(tmp_path / "copy" / below, cifar10_batches(examples, examples))
    with pytest.raises(ValueError, match="lacks cifar-10-binary.tar.gz.*--dataset=cifar10_unverified"):
        load_here("cifar10", tmp_path, tmp_path / "copy")
    (tmp_path / "copy" / below / "test_batch.bin").unlink()
    with pytest.raises(ValueError, match="lacks cifar-10-binary.tar.gz") as error:
        load_here("cifar10", tmp_path, tmp_path / "copy")
    assert "unverified" not in str(error.value)


def test_labels_keep_their_meaning() -> None:
    names = {name: pkgutil.resolve_name(load._PREPARED[name]).CLASS_NAMES for name in WRITERS}
    assert names["svhn"] == tuple(str(np.arange(10)[label]) for label in range(10))
    assert [names["cifar10"][label] for label in (0, 5, 9)] == ["airplane", "dog", "truck"]
    assert [names["fashion_mnist"][label] for label in (0, 5, 9)] == ["T-shirt/top", "Sandal", "Ankle boot"]
