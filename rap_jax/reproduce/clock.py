"""The time of each kind of work on this machine as it is now, measured once."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

# A kind that takes long is done once or twice after it was compiled, a quick one more often.
_LEAST_SECONDS, _MOST_SECONDS, _LEAST_UNITS = 0.5, 4.0, 3


class Preparable(Protocol):
    """A kind of work, hashable."""

    def prepared(self) -> Callable[[], object]:
        """Does one unit; the first call compiles."""
        ...


class Measured(NamedTuple):
    """Attributes: seconds: of a unit, the median; compile_seconds: that the first one took longer."""

    seconds: float
    compile_seconds: float


class Clock:
    """Measures what it has not measured yet.

    Args:
      tell: called with each kind before it is measured.
    """

    def __init__(self, tell: Callable[[Preparable], None] = lambda kind: None):
        self.measured: dict[Preparable, Measured] = {}
        self._tell = tell

    def seconds(self, kind: Preparable) -> float:
        """Of a unit, on random images, without compiling."""
        if kind not in self.measured:
            self._tell(kind)
            self.measured[kind] = _measure(kind)
        return self.measured[kind].seconds

    @property
    def compile_seconds(self) -> float:
        """Of all kinds together, each compiled once, or read from the compilation cache."""
        return sum(found.compile_seconds for found in self.measured.values())


def _measure(kind: Preparable) -> Measured:
    began = time.perf_counter()
    unit = kind.prepared()
    unit()
    first, found = time.perf_counter() - began, list[float]()
    while sum(found) < _LEAST_SECONDS or (len(found) < _LEAST_UNITS and sum(found) < _MOST_SECONDS):
        start = time.perf_counter()
        unit()
        found.append(time.perf_counter() - start)
    seconds = statistics.median(found)
    return Measured(seconds, max(0.0, first - seconds))
