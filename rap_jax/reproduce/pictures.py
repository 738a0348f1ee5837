"""Pictures for a report: those that the jobs of a table have left in their folders."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rap_jax.reproduce.cells import Cell
from rap_jax.reproduce.collect import Measured
from rap_jax.reproduce.job import Job

_OF_RUNS = {"training": "Training", "admm": "ADMM by layer"}
_OF_EVALUATIONS = {"robustness": "Accuracy over the radius", "examples": "Images that an attack broke"}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# A report of all cells of a table stays one file that can be sent by mail.
MOST_BYTES = 8_000_000


class Picture(NamedTuple):
    """Attributes: name: of its file without `.png`; caption: what it shows; png: the bytes of the file."""

    name: str
    caption: str
    png: bytes


class Gallery(NamedTuple):
    """The pictures of a cell. Attributes: title: name of the network; pictures: of it and of its evaluations."""

    title: str
    pictures: tuple[Picture, ...]


def galleries(measured: Measured, out: Path, most_bytes: int = MOST_BYTES) -> tuple[tuple[Gallery, ...], int]:
    """The pictures of the first seed that is done of each cell with a pruned network, of all cells if there are none.

    Args:
      out: folder of the plan.
      most_bytes: of all files together; galleries beyond it are left out.

    Returns:
      The galleries, and how many were left out for their size.
    """
    found, left_out, size = list[Gallery](), 0, 0
    for gallery in _galleries(measured, out):
        more = sum(len(picture.png) for picture in gallery.pictures)
        if size + more > most_bytes:
            left_out += 1
            continue
        found.append(gallery)
        size += more
    return tuple(found), left_out


def _galleries(measured: Measured, out: Path) -> Iterator[Gallery]:
    cells = [cell for cell in measured.table.cells if cell.network[0].inputs] or measured.table.cells
    shown = set[str]()  # a table may show one network in many cells
    for cell in cells:
        seed = next((seed for seed, job in enumerate(cell.network) if job.name in measured.results), None)
        if seed is None or cell.network[seed].name in shown:
            continue
        shown.add(cell.network[seed].name)
        if pictures := tuple(_pictures(cell, seed, measured, out)):
            yield Gallery(cell.network[seed].name, pictures)


def _pictures(cell: Cell, seed: int, measured: Measured, out: Path) -> Iterator[Picture]:
    """Those of the network, then those of the evaluations of it that the cell shows."""
    yield from _read(cell.network[seed], out, _OF_RUNS)
    jobs = dict.fromkeys(quantity.jobs[seed] for quantity in cell.quantities)
    for job in jobs:
        if job.module == "launch.evaluate" and job.name in measured.results:
            yield from _read(job, out, _OF_EVALUATIONS)


def _read(job: Job, out: Path, names: dict[str, str]) -> Iterator[Picture]:
    for name, caption in names.items():
        path = out / job.place / f"{name}.png"
        content = path.read_bytes() if path.is_file() else b""
        if content.startswith(_SIGNATURE):
            yield Picture(name, f"{caption}: {job.name}", content)
