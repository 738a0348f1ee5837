"""What a user sees while a stage runs: a bar on a terminal, a plain line every few seconds elsewhere.

How a process shows its progress is a setting of the process, as the verbosity of its log is: `show_as`.
"""

import io
import sys
import time
from typing import Literal, Self, TextIO

import tqdm

from rap_jax._runtime.processes import is_first

_SECONDS_BETWEEN_LINES = 10.0
_NOWHERE = io.StringIO()  # of several processes one speaks
Style = Literal["auto", "bar", "plain", "none"]
_style: Style = "auto"


def show_as(style: Style) -> None:
    """From now on: a bar, plain lines, or nothing; `auto` is a bar on a terminal and lines elsewhere."""
    global _style
    _style = style


class Progress:
    """A context manager that counts what `label` names up to `total`.

    Args:
      start: the count to begin with, for a resumed stage; the time left is estimated from there.
      stream: where it is written; under `auto` a terminal gets a bar with the time left, anything else gets lines.
    """

    def __init__(self, label: str, total: int, *, start: int = 0, unit: str = "step", stream: TextIO | None = None):
        speaks = is_first() and _style != "none"
        self._stream = (stream or sys.stderr) if speaks else _NOWHERE
        self._label, self._total, self._start, self._unit = label, total, start, unit
        self._began = self._last_line = time.monotonic()
        self._bar = None
        if speaks and (_style == "bar" or (_style == "auto" and self._stream.isatty())):
            self._bar = tqdm.tqdm(
                desc=label, total=total, initial=start, unit=unit, file=self._stream, dynamic_ncols=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int, note: str = "") -> None:
        """Shows that `count` of the total are done."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES or count == self._total:
            self._last_line = now
            self.line(f"{self._label} {self._unit} {count}/{self._total}{self._time_left(count, now)}  {note}".rstrip())

    def line(self, text: str) -> None:
        """Writes one line of text, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _time_left(self, count: int, now: float) -> str:
        done = count - self._start
        if done <= 0 or count >= self._total:
            return ""
        seconds = round((now - self._began) / done * (self._total - count))
        return f"  ETA {seconds // 3600:d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
