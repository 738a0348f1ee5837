"""metrics.jsonl: one JSON object per line, each with a checksum of its own, appended while training.

Lines that were changed on disk are skipped. A file of an earlier version has no checksums; its lines are accepted if
they have the fields of their kind.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from rap_jax._runtime.integrity import sorted_json
from rap_jax.config import STAGES

Line = dict[str, Any]

_CHECKSUM = "crc32"
_NUMBERS = {
    "train": ("loss", "accuracy"),
    "validation": ("natural_accuracy", "robust_accuracy"),
    "admm": ("distance", "primal_residual", "dual_residual", "rho"),
}


class EventFiles:
    """The numbers of the lines as event files of TensorBoard, such as `admm/train/loss` over the steps of a stage.

    A resumed run writes a further file, whose first steps repeat the last ones of the file before.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: Any = None

    def add(self, line: Mapping[str, Any]) -> None:
        """The numbers of one line of metrics.jsonl; the first one makes the file."""
        if self._writer is None:
            from tensorboardX import SummaryWriter  # an extra

            self._writer = SummaryWriter(str(self._folder), flush_secs=10)
        layer = [line["layer"]] if "layer" in line else []
        for name, value in line.items():
            if isinstance(value, float):
                self._writer.add_scalar("/".join([line["stage"], line["kind"], *layer, name]), value, line["step"])

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()


def as_text(line: Mapping[str, Any]) -> str:
    """A line of the file, with its end."""
    return json.dumps({**line, _CHECKSUM: _checksum(line)}) + "\n"


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file as they were written, in its order and without their checksums.

    Lines that are cut short or changed are skipped with a warning.
    """
    skipped = 0
    texts = path.read_text(errors="replace").splitlines()
    has_checksums = any(f'"{_CHECKSUM}": ' in text for text in texts)
    for text in texts:
        try:
            yield _read_line(text, has_checksums)
        except ValueError:
            skipped += 1
    if skipped:
        logging.warning("%s: %d lines that cannot be read were skipped.", path, skipped)


def read_metrics(path: Path) -> list[Line]:
    """The lines in the order of their steps. Of a step that a resumed run repeated the last line counts."""
    lines = {(line["kind"], line["stage"], line["step"], line.get("layer")): line for line in read_lines(path)}
    return sorted(lines.values(), key=lambda line: line["step"])


def _read_line(text: str, has_checksums: bool) -> Line:
    line = json.loads(text)
    if not isinstance(line, dict) or line.pop(_CHECKSUM, None) != (_checksum(line) if has_checksums else None):
        raise ValueError("no object, or not as it was written")
    kind, stage, layer = (line.get(name) for name in ("kind", "stage", "layer"))
    if kind not in tuple(_NUMBERS) or stage not in STAGES or (kind == "admm" and not isinstance(layer, str)):
        raise ValueError("expected a kind, a stage, and the layer in a line of ADMM")
    numbers = ("step", "epoch", *_NUMBERS[kind])
    if not all(isinstance(line.get(name), int | float) for name in numbers):
        raise ValueError(f"expected numbers for {', '.join(numbers)}")
    return line


def _checksum(line: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(sorted_json(line)):08x}"
