"""Tests of finding and verifying official files, on small files."""

import dataclasses
import gzip
import hashlib
from pathlib import Path

import pytest

from rap_jax.data.raw_files import RawFile, find_files, read_verified, unpack

CONTENT = bytes(range(256)) * 20
PACKED = gzip.compress(CONTENT, 9)
URL = "http://example.invalid/files/"
STRICT = RawFile(f"{URL}images.gz", hashlib.sha256(PACKED).hexdigest())
LENIENT = RawFile(f"{URL}labels.gz", hashlib.sha256(CONTENT).hexdigest(), digest_of_unpacked=True)
FILES = (STRICT, LENIENT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in FILES:
        (tmp_path / file.name).write_bytes(PACKED)
    return tmp_path


def test_files_are_found_by_name_and_read(folder: Path) -> None:
    paths = find_files(FILES, folder)
    assert paths == {"images.gz": folder / "images.gz", "labels.gz": folder / "labels.gz"}
    assert read_verified(paths["images.gz"], STRICT) == PACKED
    assert read_verified(paths["labels.gz"], LENIENT) == CONTENT
    assert unpack(PACKED) == unpack(CONTENT) == CONTENT


@pytest.mark.parametrize("level", [None, 0, 1])
def test_a_file_unpacked_or_compressed_again_is_the_same_where_its_content_is_known(
    folder: Path, level: int | None
) -> None:
    (folder / "labels.gz").unlink()
    target = folder / ("labels" if level is None else "labels.gz")
    target.write_bytes(CONTENT if level is None else gzip.compress(CONTENT, level))
    assert read_verified(find_files(FILES, folder)["labels.gz"], LENIENT) == CONTENT


def test_a_file_compressed_again_is_refused_where_only_the_packed_file_is_known(folder: Path) -> None:
    (folder / "images.gz").write_bytes(gzip.compress(CONTENT, 1))
    with pytest.raises(ValueError, match=f"images.gz .*packing it again.*expected {STRICT.sha256}, got"):
        read_verified(folder / "images.gz", STRICT)


def test_an_unpacked_file_is_not_taken_where_only_the_packed_file_is_known(folder: Path) -> None:
    (folder / "images.gz").rename(folder / "images")
    with pytest.raises(ValueError, match=f"lacks images.gz. Put them there, from {URL}. .*cannot be checked"):
        find_files(FILES, folder)


def test_the_packed_file_is_preferred(folder: Path) -> None:
    (folder / "labels").write_bytes(b"not read")
    assert find_files(FILES, folder)["labels.gz"].suffix == ".gz"


def test_all_missing_files_are_listed(folder: Path) -> None:
    for file in FILES:
        (folder / file.name).unlink()
    with pytest.raises(ValueError, match=f"raw_data_dir {folder} lacks images.gz, labels.gz. .*{URL}$"):
        find_files(FILES, folder)


@pytest.mark.parametrize("name", ["none", "images.gz"])
def test_what_is_no_folder_is_named(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*expected a folder with images.gz, labels.gz of {URL}"):
        find_files(FILES, folder / name)


@pytest.mark.parametrize("file", FILES)
def test_another_content_is_refused_with_both_digests(folder: Path, file: RawFile) -> None:
    other = CONTENT[:-1] + b"x"
    path = folder / file.name
    path.write_bytes(gzip.compress(other, 9))
    digest = hashlib.sha256(other if file.digest_of_unpacked else path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"{path} .*expected {file.sha256}, got {digest}. .*{file.url}"):
        read_verified(path, file)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "header"])
def test_a_damaged_archive_is_refused_by_name(folder: Path, file: RawFile, damage: str) -> None:
    path = folder / file.name
    middle = len(PACKED) // 2
    flipped = PACKED[:middle] + bytes([PACKED[middle] ^ 0xFF]) + PACKED[middle + 1 :]
    damaged = {"truncated": PACKED[:-50], "flipped": flipped, "empty": b"", "header": b"x" + PACKED[1:]}
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=f"{path} is damaged .*Delete it and get it again from {file.url}"):
        read_verified(path, file)


def test_a_file_whose_name_does_not_end_in_gz_has_one_name() -> None:
    file = dataclasses.replace(LENIENT, url=f"{URL}train_32x32.mat")
    assert file.name == file.unpacked_name == "train_32x32.mat"
