"""That a file has to be made again is said of damaged files, and never of what stands in the way of a good one."""

import errno
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rap_jax._runtime.integrity import is_damage, open_npz, unreadable, write_checked
from rap_jax.data.raw_files import RawFile, read_verified
from rap_jax.evaluation import suite
from rap_jax.evaluation.auto_attack import record
from rap_jax.runs import network

READERS: dict[str, Callable[[Path], Any]] = {
    "margins": lambda path: open_npz(path, "delete it to have it made again").__enter__(),
    "transfer": suite.load,
    "record": lambda path: record.load(path, np.zeros((1, 2, 2, 1)), {}),
    "raw": lambda path: read_verified(path, RawFile("http://example.invalid/file", "0")),
}


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        ModuleNotFoundError("No module named 'grain'"),
        ValueError("PERMISSION_DENIED: opening a file"),
        RuntimeError("cannot open x: Permission denied"),
    ],
)
def test_what_stands_in_the_way_is_no_damage(error: Exception) -> None:
    message = str(unreadable("a.npz", error, "delete it"))
    assert not is_damage(error) and "damaged" not in message and "delete" not in message
    assert message.startswith("a.npz cannot be read here (") and "keep it" in message


@pytest.mark.parametrize("error", [ValueError("x"), EOFError(), zipfile.BadZipFile("x"), OSError(errno.EINVAL, "seek")])
def test_wrong_content_is_damage(error: Exception) -> None:
    assert is_damage(error)
    assert str(unreadable("a.npz", error, "delete it")) == f"a.npz is damaged ({error!r}); delete it."


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_may_not_be_read_is_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "file.npz"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{path} is damaged.* [Dd]elete it|SHA-256"):
        READERS[name](path)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ValueError, match=f"{path} cannot be read here .*keep it") as error:
        READERS[name](path)
    assert "elete" not in str(error.value)


def test_results_of_another_kind_are_no_damage(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(write_checked({"combined": 0.5}))  # as an evaluation has them
    with pytest.raises(ValueError, match="is of another kind; expected the folder of a run") as error:
        network.load_network(tmp_path)
    assert "delete" not in str(error.value) and "move" not in str(error.value)
