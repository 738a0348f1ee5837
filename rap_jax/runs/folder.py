"""The folder of a run: its files, each written completely or not at all, and the config that they belong to.

run.flags        the flags, can be given back as --flagfile (written by the command)
config.json      what decides the numbers; a run with another config is refused
checkpoints/     one sub-folder per stage
metrics.jsonl    one JSON object per line, appended while training (see metrics.py)
tensorboard/     the same as event files, if it was asked for
stages/          one result per finished stage, and that of the test
results.json     the result of the run, written once at the end
report.md, *.png"""

import dataclasses
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from rap_jax._runtime.integrity import (
    difference,
    naming_the_file,
    read_checked,
    read_object,
    write_atomically,
    write_checked,
)
from rap_jax._runtime.processes import from_first, is_first
from rap_jax.config import Stage
from rap_jax.config.checks import complete
from rap_jax.runs.metrics import EventFiles, as_text, read_lines

_CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """An open run folder; make one with `open_run_folder`. Its lock ends with a `with` block around it."""

    path: Path
    lock: IO[str] | None
    events: EventFiles | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.events is not None:
            self.events.close()
        if self.lock is not None:
            self.lock.close()

    def checkpoints(self, stage: Stage) -> Path:
        """Folder of a stage's checkpoints."""
        return self.path / "checkpoints" / stage

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        if not is_first():
            return
        path = self.path / "metrics.jsonl"
        with naming_the_file(path), path.open("a") as file:
            file.write(as_text(record))
        if self.events is not None:
            self.events.add(record)

    def with_event_files(self) -> "RunFolder":
        """The folder, which writes event files of TensorBoard too."""
        return dataclasses.replace(self, events=EventFiles(self.path / "tensorboard")) if is_first() else self

    def forget_metrics_after(self, stage: Stage, step: int) -> None:
        """Drops the lines that a resumed run will write again: the later steps of `stage`."""
        path = self.path / "metrics.jsonl"
        if not is_first() or not path.exists():
            return
        kept = [line for line in read_lines(path) if line["stage"] != stage or line["step"] <= step]
        write_atomically(path, "".join(as_text(line) for line in kept))

    def read_json(self, name: str, keys: tuple[str, ...] = ()) -> dict[str, Any] | None:
        """The JSON object in file `name`, which must have `keys`, or None if there is no such file.

        Raises:
          ValueError: the file is damaged, incomplete, or changed since it was written; names it.
        """
        return from_first(lambda: _read_json(self.path, name, keys))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes `value` to file `name`, atomically, and a checksum with it."""
        self.write(name, write_checked(value))

    def write(self, name: str, content: str) -> None:
        """Writes file `name`, atomically; of several processes the first one does."""
        if is_first():
            (self.path / name).parent.mkdir(exist_ok=True)
            write_atomically(self.path / name, content)


def _read_json(folder: Path, name: str, keys: tuple[str, ...] = ()) -> dict[str, Any] | None:
    path = folder / name
    if not path.exists():
        return None
    try:
        # Of settings any change shows when they are compared, so they need no checksum.
        value = read_object(path.read_text()) if name == _CONFIG else read_checked(path.read_text())
    except ValueError as error:
        again = "restore it, or choose another --out_dir" if name == _CONFIG else "delete it to have it made again"
        raise ValueError(f"{path} is damaged ({error}); {again}.") from error
    if missing := [key for key in keys if key not in value]:
        raise ValueError(
            f"{path} has no {', '.join(missing)}: another version of this program wrote it. Go on with that version, "
            f"or move the file away to have it made again."
        )
    return value


def open_run_folder(path: Path, config: Mapping[str, Any]) -> RunFolder:
    """Makes the folder and its parents, or opens it to go on, and locks it against a second run.

    Of several processes that compute as one the first has the lock and writes for all of them.

    Args:
      config: everything that decides the numbers, as nested dicts for JSON; written to config.json.

    Raises:
      ValueError: it cannot be written, another process (or another block of this one) runs in it, it holds a run
        with another config (the difference is shown), or it holds other files and no run.
    """
    path = path.expanduser().resolve()
    opened: list[RunFolder] = []
    # The one that has the lock keeps it even if JSON cannot say so.
    from_first(lambda: opened.append(_open(path, config)))
    return opened[0] if opened else RunFolder(path, None)


def _open(path: Path, config: Mapping[str, Any]) -> RunFolder:
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise ValueError(
            f"Run folder {path} cannot be written ({error.strerror}); choose another --out_dir."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        reason = f"cannot be locked ({error.strerror}); choose an --out_dir on another file system."
        if isinstance(error, BlockingIOError):
            reason = "is in use by another process; wait for it or choose another --out_dir."
        raise ValueError(f"Run folder {path} {reason}") from error
    folder = RunFolder(path, lock)
    try:
        check_run_folder(path, config)
        if not (path / _CONFIG).exists():
            folder.write(_CONFIG, json.dumps(config, indent=2) + "\n")
    except BaseException:
        lock.close()
        raise
    return folder


def is_in_use(path: Path) -> bool:
    """Whether a process holds the run folder `path`, which need not exist.

    Raises:
      ValueError: its file system does not say.
    """
    try:
        with (path.expanduser() / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise ValueError(f"Run folder {path} cannot be locked ({error.strerror}); use another file system.") from error
    return False


def check_run_folder(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses a folder that `open_run_folder` would refuse for what it holds; one that is not there is right.

    Writes nothing.

    Raises:
      ValueError: it holds a run with another config, or other files and no run.
    """
    if not path.is_dir():
        return
    wanted, before = json.loads(json.dumps(config)), _read_json(path, _CONFIG)
    others = [p.name for p in path.iterdir() if not p.name.startswith(".") and p.name != "run.flags"]
    if before is None and others:
        raise ValueError(
            f"Run folder {path} holds {', '.join(sorted(others)[:3])} but no config.json, so it is not "
            f"a run of this program; choose an empty or new folder with --out_dir."
        )
    before = None if before is None else complete(before, wanted)
    if before is not None and before != wanted:
        raise ValueError(
            f"Run folder {path} holds a run with other settings:\n{difference(before, wanted)}\n"
            f"Give the same flags to go on with that run, or another --out_dir to start a new one."
        )
