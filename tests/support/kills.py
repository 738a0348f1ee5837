"""kill -9 at random moments of the real command, and a log of where each came.

    log = kill_again_and_again(folder, start, num_kills=50, generator=random.Random(0))

A command is started, killed after a random time, started again, and so on; one that comes to its end is one run done,
and the next begins in a new folder. So the kills spread over reading data, compiling, training, saving, dual steps,
evaluation and what lies between the stages, as time does.
"""

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rap_jax.runs.metrics import read_lines

Start = Callable[[Path], subprocess.Popen[str]]
_SECONDS = 300.0
# A step takes milliseconds and to start takes seconds: without this most kills would come before the first step.
_SHARE_AFTER_START = 0.9


class Kill(NamedTuple):
    """Attributes: run: number of the folder; seconds: after the start; where: what the folder showed."""

    run: int
    seconds: float
    where: str


def kill_again_and_again(
    folder: Path, start: Start, *, num_kills: int, generator: random.Random, longest: float = 4.0
) -> tuple[list[Kill], list[Path]]:
    """Kills `num_kills` processes, then lets the last run come to its end.

    Args:
      folder: of all runs.
      start: the command in the folder that it is given.
      longest: seconds that a process may live after it has gone on with its work.

    Returns:
      Where each kill came, and the folders of the runs that were finished.
    """
    kills, finished = list[Kill](), list[Path]()
    while len(kills) < num_kills:
        run = folder / f"run{len(finished)}"
        began, process = time.monotonic(), start(run)
        before = _trace(run)
        if generator.random() < _SHARE_AFTER_START:
            _wait(process, lambda run=run, before=before: _trace(run) != before)
        if not _ends_within(process, generator.uniform(0, longest)):
            process.kill()
            process.communicate(timeout=_SECONDS)
            kills.append(Kill(len(finished), time.monotonic() - began, where(run)))
            continue
        _require_success(process)
        finished.append(run)
    last = folder / f"run{len(finished)}"
    _require_success(start(last))
    return kills, [*finished, last]


def where(run: Path) -> str:
    """What a run was doing, as far as its folder shows: the last line of its metrics, and what is half written."""
    metrics = run / "metrics.jsonl"
    lines = list(read_lines(metrics)) if metrics.exists() else []
    words = f"{lines[-1]['stage']} step {lines[-1]['step']} ({lines[-1]['kind']})" if lines else "before the first step"
    saving = [path.parent.name for path in run.glob("checkpoints/*/*tmp*")]
    done = [path.stem for path in sorted(run.glob("stages/*.json"))]
    words += f", saving a checkpoint of {saving[0]}" if saving else ""
    return words + (f", finished: {', '.join(done)}" if done else "")


def as_table(kills: list[Kill]) -> str:
    """The log, a line for each kill."""
    lines = (f"run {kill.run}  {kill.seconds:5.1f} s  {kill.where}" for kill in kills)
    return "\n".join(f"{number:3d}  {line}" for number, line in enumerate(lines, 1))


def _trace(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.stat().st_size if metrics.exists() else 0


def _wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _SECONDS
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the command hangs"
        time.sleep(0.002)


def _ends_within(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _require_success(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
