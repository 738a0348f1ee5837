"""Compiled programs that the tests keep from one call to the next."""

import zlib
from pathlib import Path

import pytest
from compiled import keep, lend

PROGRAM = zlib.compress(b"program" * 100)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o700)
    return folder


def call(kept: Path, folder: Path, files: dict[str, bytes], limit: int = 10**6) -> set[str]:
    """A call of pytest that compiles these; returns what lay there at its start."""
    folder.mkdir()
    lend(kept, folder)
    found = {path.name for path in folder.iterdir()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    keep(folder, kept, limit)
    return found


def test_the_next_call_finds_whole_programs(kept: Path, tmp_path: Path) -> None:
    files = {"whole": PROGRAM, "cut": PROGRAM[:-3], "empty": b"", "other": b"other"}
    assert call(kept, tmp_path / "first", files) == set()
    assert call(kept, tmp_path / "second", {"more": PROGRAM}) == {"whole"}
    assert call(kept, tmp_path / "third", {}) == {"whole", "more"}


def test_it_is_emptied_when_it_grows_too_large_and_disturbs_no_call(kept: Path, tmp_path: Path) -> None:
    call(kept, tmp_path / "first", {"old": PROGRAM})
    (tmp_path / "other").mkdir()
    lend(kept, tmp_path / "other")
    call(kept, tmp_path / "second", {"new": PROGRAM}, limit=len(PROGRAM) + 1)
    assert [path.name for path in kept.iterdir()] == ["new"]
    assert (tmp_path / "other" / "old").read_bytes() == PROGRAM


def test_what_others_may_have_written_is_not_used(kept: Path, tmp_path: Path) -> None:
    call(kept, tmp_path / "first", {"old": PROGRAM})
    kept.chmod(0o777)
    assert call(kept, tmp_path / "second", {"new": PROGRAM}) == set()
    assert not (kept / "new").exists()
