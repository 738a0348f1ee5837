"""Tests of the prepared copy: made by TFDS without TensorFlow, read unchanged, refused when damaged or half made."""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_dataset import (
    TEST,
    TRAIN,
    RapTestTiny,
    RapTestTinyStored,
    assert_same,
    prepared_folder,
    raw_bytes,
    raw_file,
    write_raw,
)

from rap_jax.data import Split
from rap_jax.data.prepared import prepare, prepared_path, read_prepared

BUILDERS = (RapTestTiny, RapTestTinyStored)


def prepare_tiny(data_dir: Path, raw: Path, builder: type[RapTestTiny] = RapTestTiny, train: Split = TRAIN) -> Path:
    """Returns the file with the prepared training data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "FILES", (raw_file(raw_bytes(train)),))
        prepare(builder, data_dir, write_raw(raw, train))
    (records,) = prepared_path(builder, data_dir).glob("*train*")
    return records


def other_train() -> Split:
    images = TRAIN.images.copy()
    images[0, 0, 0, 0] ^= 1
    return TRAIN._replace(images=images)


@pytest.mark.parametrize("builder", BUILDERS)
def test_the_round_trip_through_tfds_changes_nothing_and_needs_no_tensorflow(
    tmp_path: Path, builder: type[RapTestTiny]
) -> None:
    prepare_tiny(tmp_path, tmp_path / "raw", builder)
    (train, test, class_names), digest = read_prepared(builder, tmp_path)
    assert_same(train, TRAIN)
    assert_same(test, TEST)
    assert class_names == ("ant", "bee", "cat") and digest == RapTestTiny.CONTENT_SHA256
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "info"])
def test_a_damaged_copy_is_refused_with_what_to_delete(tmp_path: Path, damage: str) -> None:
    records = prepare_tiny(tmp_path, tmp_path / "raw")
    if damage == "missing":
        records.unlink()
    elif damage == "info":
        (records.parent / "dataset_info.json").write_text("{")
    else:
        records.write_bytes(records.read_bytes()[: 70_000 if damage == "truncated" else 0])
    with pytest.raises(ValueError, match=f"is damaged.* delete the folder {records.parent}"):
        read_prepared(RapTestTiny, tmp_path)


def test_a_copy_that_is_whole_but_differs_in_one_pixel_is_refused(tmp_path: Path) -> None:
    prepare_tiny(tmp_path, tmp_path / "raw", train=other_train())
    with pytest.raises(ValueError, match=f"is damaged.* delete the folder {prepared_folder(tmp_path)}"):
        read_prepared(RapTestTiny, tmp_path)


def test_a_copy_must_have_the_hash_that_was_stored_with_it(tmp_path: Path) -> None:
    records = prepare_tiny(tmp_path / "one", tmp_path / "raw", RapTestTinyStored)
    others = prepare_tiny(tmp_path / "two", tmp_path / "raw", RapTestTinyStored, other_train())
    assert_same(read_prepared(RapTestTinyStored, tmp_path / "two")[0].train, other_train())
    records.write_bytes(others.read_bytes())
    with pytest.raises(ValueError, match=f"is damaged.* delete the folder {records.parent}"):
        read_prepared(RapTestTinyStored, tmp_path / "one")


@pytest.mark.parametrize("damage", [None, "", "{", "{}", "[]", '{"content_sha256": "00"}'])
def test_a_stored_hash_that_is_gone_or_damaged_is_a_damaged_copy(tmp_path: Path, damage: str | None) -> None:
    stored = prepare_tiny(tmp_path, tmp_path / "raw", RapTestTinyStored).with_name("metadata.json")
    assert RapTestTiny.CONTENT_SHA256 in stored.read_text()
    stored.unlink() if damage is None else stored.write_text(damage)
    with pytest.raises(ValueError, match=f"is damaged.* delete the folder {stored.parent}"):
        read_prepared(RapTestTinyStored, tmp_path)


def test_a_copy_of_known_hash_needs_no_stored_one(tmp_path: Path) -> None:
    prepare_tiny(tmp_path, tmp_path / "raw").with_name("metadata.json").unlink()
    assert_same(read_prepared(RapTestTiny, tmp_path)[0].train, TRAIN)


def test_a_second_process_that_prepares_at_the_same_time_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = RapTestTiny._generate_examples

    def overtake(self: RapTestTiny, split: Split) -> Iterator[Any]:
        monkeypatch.setattr(RapTestTiny, "_generate_examples", generate)
        prepare_tiny(tmp_path, tmp_path / "raw")
        yield from generate(self, split)

    monkeypatch.setattr(RapTestTiny, "_generate_examples", overtake)
    prepare_tiny(tmp_path, tmp_path / "raw")
    assert_same(read_prepared(RapTestTiny, tmp_path)[0].train, TRAIN)


def prepare_and_hang(data_dir: Path, raw: str) -> None:
    generate = RapTestTiny._generate_examples

    def hang(self: RapTestTiny, split: Split) -> Iterator[Any]:
        yield from generate(self, split)
        (data_dir / "hangs").touch()
        time.sleep(600)

    RapTestTiny._generate_examples = hang  # type: ignore[method-assign]
    prepare(RapTestTiny, data_dir, raw)


@pytest.mark.e2e
def test_a_copy_that_was_being_made_when_killed_is_not_taken_for_one(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    process = multiprocessing.get_context("spawn").Process(target=prepare_and_hang, args=(tmp_path, raw))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "hangs").exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.join()
    assert list(tmp_path.glob("rap_test_tiny/incomplete*"))
    assert not prepared_path(RapTestTiny, tmp_path).exists()
    prepare(RapTestTiny, tmp_path, raw)
    assert_same(read_prepared(RapTestTiny, tmp_path)[0].test, TEST)
