"""Several ways of doing a thing, timed in turn, with an eye on what else the machine does."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.worker import Answer

# A turn in which other programs used more than this share of a core is taken again, at most so many times.
_QUIET_CORES = 0.25
_MAX_TRIES = 3


class Times(NamedTuple):
    """Seconds of one way in each round. Attributes: seconds; other_cores: cores that others used meanwhile."""

    seconds: list[float]
    other_cores: list[float]

    @property
    def median(self) -> float:
        """Of the rounds, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest minus fastest round, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def in_turn(ways: Mapping[str, Callable[[], Answer]], *, rounds: int, max_tries: int = _MAX_TRIES) -> dict[str, Times]:
    """Runs every way once a round; a way returns `clocked`'s answer of work that was done, in whatever process.

    A turn beside other programs is taken again, `max_tries` times in all: 1 where the work is not the processor's.
    """
    times: dict[str, Times] = {name: Times([], []) for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            seconds, others = _quiet_turn(run, max_tries)
            times[name].seconds.append(seconds)
            times[name].other_cores.append(others)
    return times


def _quiet_turn(run: Callable[[], Answer], max_tries: int) -> tuple[float, float]:
    """Seconds and cores used by others, of the first turn that was quiet or else of the quietest."""
    found = []
    for _ in range(max_tries):
        start, busy = time.perf_counter(), _busy_seconds()
        answer = run()
        elapsed = time.perf_counter() - start
        others = max(0.0, _busy_seconds() - busy - answer["processor_seconds"]) / elapsed
        found.append((others, answer["seconds"]))
        if others < _QUIET_CORES:
            break
    others, seconds = min(found)
    return seconds, others


def _busy_seconds() -> float:
    """Processor time of all programs since the machine was started; 0 where the system does not tell."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _, _, *rest = (int(field) for field in path.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")
