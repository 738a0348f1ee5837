"""Tests of finding, verifying and parsing the official MNIST files, on small files in their format."""

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rap_jax.data import content_hash
from rap_jax.data.raw_mnist import SHA256, URLS, find_files, parse_idx, read_files, read_verified

OFFICIAL = Path(__file__).parents[2] / "shared" / "data" / "mnist"
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = SHA256


def to_idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Contents of four small files, which the module takes for the official ones during the test."""
    generator = np.random.default_rng(0)
    shapes = {TRAIN_IMAGES: (30, 28, 28), TRAIN_LABELS: (30,), TEST_IMAGES: (10, 28, 28), TEST_LABELS: (10,)}
    contents = {name: generator.integers(0, 10, shape, dtype=np.uint8) for name, shape in shapes.items()}
    for name, array in contents.items():
        monkeypatch.setitem(SHA256, name, hashlib.sha256(to_idx(array)).hexdigest())
    return contents


@pytest.fixture
def folder(arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    for name, array in arrays.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(to_idx(array)))
    return tmp_path


def test_read_files_returns_what_was_written(arrays: dict[str, np.ndarray], folder: Path) -> None:
    train, test = read_files(find_files(folder))
    np.testing.assert_array_equal(train.images, arrays[TRAIN_IMAGES][..., None])
    np.testing.assert_array_equal(train.labels, arrays[TRAIN_LABELS])
    np.testing.assert_array_equal(test.images, arrays[TEST_IMAGES][..., None])
    np.testing.assert_array_equal(test.labels, arrays[TEST_LABELS])
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("level", [None, 0, 1])
def test_a_file_unpacked_or_compressed_again_is_the_same(folder: Path, level: int | None) -> None:
    expected = content_hash(*read_files(find_files(folder)))
    for name in SHA256:
        packed = folder / f"{name}.gz"
        data = gzip.decompress(packed.read_bytes())
        packed.unlink()
        target = folder / name if level is None else packed
        target.write_bytes(data if level is None else gzip.compress(data, level))
    assert content_hash(*read_files(find_files(folder))) == expected


def test_the_packed_file_is_preferred(folder: Path) -> None:
    (folder / TEST_LABELS).write_bytes(b"not read")
    assert find_files(folder)[TEST_LABELS].suffix == ".gz"
    read_files(find_files(folder))


def test_all_missing_files_are_listed(folder: Path) -> None:
    (folder / f"{TRAIN_LABELS}.gz").unlink()
    (folder / f"{TEST_IMAGES}.gz").unlink()
    with pytest.raises(ValueError, match=f"lacks {TRAIN_LABELS}.gz, {TEST_IMAGES}.gz. .*https://") as error:
        find_files(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["none", f"{TRAIN_IMAGES}.gz"])
def test_what_is_no_folder_is_named(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*expected a folder"):
        find_files(folder / name)


def test_one_wrong_byte_is_refused_with_both_digests(arrays: dict[str, np.ndarray], folder: Path) -> None:
    damaged = arrays[TEST_IMAGES].copy()
    damaged[3, 14, 14] ^= 1
    (folder / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(to_idx(damaged)))
    digest = hashlib.sha256(to_idx(damaged)).hexdigest()
    with pytest.raises(ValueError, match=f"{TEST_IMAGES}.gz .*expected {SHA256[TEST_IMAGES]}, got {digest}") as error:
        read_files(find_files(folder))
    assert URLS[TEST_IMAGES] in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "header", "swapped"])
def test_a_damaged_archive_is_refused_by_name(folder: Path, damage: str) -> None:
    path = folder / f"{TRAIN_IMAGES}.gz"
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
    swapped = (folder / f"{TEST_IMAGES}.gz").read_bytes()
    damaged = {
        "truncated": data[:-100],
        "flipped": flipped,
        "empty": b"",
        "header": b"x" + data[1:],
        "swapped": swapped,
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=f"{TRAIN_IMAGES}.gz is damaged"):
        read_files(find_files(folder))


def test_parse_idx_reads_the_header() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(parse_idx(to_idx(array), "x"), array)
    np.testing.assert_array_equal(parse_idx(to_idx(array[:, 0, 0]), "x"), [0, 12])


@pytest.mark.parametrize(
    "change", [lambda d: d[:-1], lambda d: d + b"0", lambda d: d[:9], lambda d: d[:3], lambda d: b""]
)
def test_parse_idx_refuses_a_wrong_length(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=r"of x is|in x is"):
        parse_idx(change(to_idx(np.zeros((2, 3, 4)))), "x")


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_parse_idx_refuses_another_type_or_rank(position: int) -> None:
    data = bytearray(to_idx(np.zeros((2, 3, 4))))
    data[position] ^= 7
    with pytest.raises(ValueError, match="expected"):
        parse_idx(bytes(data), "x")


def test_the_official_files_are_accepted_and_told_from_others() -> None:
    if not OFFICIAL.is_dir():
        pytest.skip(f"no official files in {OFFICIAL}")
    train, test = read_files(find_files(OFFICIAL))
    assert (train.images.shape, test.images.shape) == ((60000, 28, 28, 1), (10000, 28, 28, 1))
    # Published facts: the first digits are 5, 0, 4 and 7, 2, 1; the mean pixel of the training set is 0.1307 of 255.
    assert (train.labels[:3].tolist(), test.labels[:3].tolist()) == ([5, 0, 4], [7, 2, 1])
    assert np.isclose(train.images.mean() / 255, 0.1307, atol=1e-4)
    with pytest.raises(ValueError, match="is damaged"):
        read_verified(find_files(OFFICIAL)[TEST_LABELS], TRAIN_LABELS)
