"""Settings of one call of `benchmarks.accelerator`, its rows, and the loop that measures them."""

import dataclasses
import datetime
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accelerators.process import Process, error_text
from benchmarks.accelerators.row_log import DONE, FAILED, Line, RowLog
from benchmarks.worker import Answer

# A row may take so many times its minutes, which are those of an H100, and some more, before it is stopped.
_PATIENCE, _MINUTES_MORE = 5, 3
# Tiny rows take about this share of the minutes.
_TINY_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the flags say."""

    out: Path  # folder of all that is written
    tiny: bool = False
    raw_data_dir: Path | None = None  # official files of MNIST
    trades: Path | None = None  # the published network; None for the one of the part `job`
    num_images: int = 1000  # that AutoAttack gets

    @property
    def job_dir(self) -> Path:
        """What the part `job` writes."""
        return self.out / ("tiny_job" if self.tiny else "job")

    @property
    def run_dir(self) -> Path:
        """The run of the part `job`."""
        return self.job_dir / "run"

    @property
    def turn_seconds(self) -> float:
        """Of one way, each time that it is its turn."""
        return 0.05 if self.tiny else 1.0

    @property
    def rounds(self) -> int:
        """Turns of each way."""
        return 1 if self.tiny else 3


class Bench(NamedTuple):
    """What a row needs to measure. Attributes: settings; name: of the row; deadline: of `time.monotonic`."""

    settings: Settings
    name: str
    deadline: float

    def log(self, what: str) -> Path:
        """A file for what a process prints."""
        folder = self.settings.out / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.name.replace('/', '_')}_{what}.log"

    def process(
        self, module: str, *arguments: str, way: str = "", environment: Mapping[str, str] | None = None
    ) -> Process:
        """A process of this row; `way` tells it from others of the same module."""
        log = self.log("_".join(filter(None, (module.rpartition(".")[2], way))))
        return Process(module, *arguments, log=log, deadline=self.deadline, environment=environment)


class Row(NamedTuple):
    """A row. Attributes: name: part/what; minutes: on an H100, with compiling; measure: what its line holds."""

    name: str
    minutes: float
    measure: Callable[[Bench], Answer]

    @property
    def part(self) -> str:
        """The part that it belongs to."""
        return self.name.partition("/")[0]


def run_rows(
    rows: Sequence[Row],
    settings: Settings,
    log: RowLog,
    machine: Mapping[str, Any],
    *,
    minutes: float = math.inf,
    again: bool = False,
) -> int:
    """Measures the rows that are not done, one after the other, and writes a line after each; returns how many failed.

    Args:
      machine: what stands in each line about device and versions.
      minutes: it stops before a row that would not fit.
      again: measures rows that are done, too.
    """
    end, num_failed = time.monotonic() + 60 * minutes, 0
    for row in rows:
        if log.is_done(row.name) and not again:
            print(f"{row.name}: done before", flush=True)
            continue
        needed = row.minutes * (_TINY_SHARE if settings.tiny else 1)
        left = (end - time.monotonic()) / 60
        if left < needed:
            print(f"Stopped before {row.name}: it takes {needed:.2g} minutes, {left:.1f} are left. Call again.")
            break
        line = _line(row, settings, end) | {"machine": dict(machine)}
        log.append(line)
        print(f"{row.name}: {line['status']}, {line['seconds']:.0f} s {line.get('error', '')}".rstrip(), flush=True)
        num_failed += line["status"] == FAILED
    return num_failed


def _line(row: Row, settings: Settings, end: float) -> Line:
    began = time.monotonic()
    deadline = min(end, began + 60 * (_PATIENCE * row.minutes + _MINUTES_MORE))
    line: Line = {"row": row.name, "date": datetime.datetime.now().isoformat(timespec="seconds")}
    try:
        line |= {"status": DONE, "found": row.measure(Bench(settings, row.name, deadline))}
    except Exception as error:  # whatever it is, the next row goes on
        line |= {"status": FAILED, "error": error_text(error)}
    return line | {"seconds": time.monotonic() - began}
