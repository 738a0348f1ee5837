"""Finished rows of `benchmarks.accelerator`: one JSON object a line, written at once, so that a cut loses one row."""

import json
import os
from pathlib import Path
from typing import Any

Line = dict[str, Any]

DONE, FAILED = "done", "failed"


class RowLog:
    """The lines of one file. A line of tiny sizes counts for tiny sizes alone."""

    def __init__(self, path: Path, *, tiny: bool):
        self.path, self._tiny = path, tiny

    def append(self, line: Line) -> None:
        """Writes a line that is on disk when this returns; one that was cut off before stays a line of its own."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size > 0
        with self.path.open("a") as file:
            file.write(("\n" if torn else "") + json.dumps(line | {"tiny": self._tiny}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def latest(self) -> dict[str, Line]:
        """The line that counts for each row: the last one that is done, or else the last one."""
        found: dict[str, Line] = {}
        for line in self._lines():
            before = found.get(line["row"])
            if before is None or line["status"] == DONE or before["status"] != DONE:
                found[line["row"]] = line
        return found

    def is_done(self, row: str) -> bool:
        """Whether the row has been measured; one that failed has not."""
        return self.latest().get(row, {}).get("status") == DONE

    def _lines(self) -> list[Line]:
        texts = self.path.read_text().splitlines() if self.path.exists() else []
        lines = [line for line in map(_parsed, texts) if line is not None]
        return [line for line in lines if line["tiny"] == self._tiny]


def _parsed(text: str) -> Line | None:
    """The line, or None for one that was cut off while it was written."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and {"row", "status", "tiny"} <= line.keys() else None
