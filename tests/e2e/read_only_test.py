"""A folder that cannot be written, from the start or from some moment on: an error names it, and nothing is lost."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny

from rap_jax.evaluation.network import open_network
from rap_jax.runs.folder import RunFolder

NOBODY = 65534


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user reaches, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    allow(folder, True)
    shutil.rmtree(folder)


def allow(folder: Path, writing: bool) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o755 if writing else 0o555) if path.is_dir() else (0o644 if writing else 0o444))


def give_up_rights() -> None:
    """The administrator may write anywhere, so there would be no such folder."""
    if os.getuid() == 0:
        os.seteuid(NOBODY)


@contextlib.contextmanager
def rights_restored() -> Iterator[None]:
    try:
        yield
    finally:
        os.seteuid(os.getuid())


def test_a_new_run_says_so_before_anything_is_trained(shared: Path) -> None:
    allow(shared, False)
    with rights_restored(), pytest.raises(ValueError, match=r"/run cannot be written \(Permission denied\); choose"):
        give_up_rights()
        tiny.run_and_watch(shared / "run")
    assert not list(shared.iterdir())


@pytest.mark.nightly
def test_from_some_moment_on(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny.run_and_watch(shared / "whole")
    folder, log = shared / "run", RunFolder.log

    def log_and_lock(run: RunFolder, record: Mapping[str, Any]) -> None:
        log(run, record)
        if record["stage"] == "admm" and record["step"] == 4:
            allow(folder, False)
            give_up_rights()

    monkeypatch.setattr(RunFolder, "log", log_and_lock)
    with rights_restored(), pytest.raises((ValueError, OSError)) as raised:
        tiny.run_and_watch(folder, output=tiny.EVERY_STEP)
    assert str(folder) in str(raised.value) and "Permission denied" in str(raised.value), raised.value
    monkeypatch.undo()
    with rights_restored(), pytest.raises(ValueError, match="Permission denied"):
        give_up_rights()
        tiny.run_and_watch(folder)
    allow(folder, True)
    watched = tiny.run_and_watch(folder)
    assert watched.began["admm"] >= 3
    assert tiny.digests_of(folder) == tiny.digests_of(whole.folder)
    assert tiny.without_time_and_place(watched.results) == tiny.without_time_and_place(whole.results)
    assert tiny.metrics_of(folder) == tiny.metrics_of(whole.folder)


def test_a_finished_run_is_read_where_nothing_can_be_written(shared: Path) -> None:
    watched = tiny.run_and_watch(shared / "run")
    before = sorted(shared.rglob("*"))
    allow(shared, False)
    with rights_restored():
        give_up_rights()
        network = open_network(str(shared / "run"))
    assert network.run == watched.results
    assert sorted(shared.rglob("*")) == before
