"""A table with what its jobs have found so far.

    measured = collect(build_table("2", scale), Path("results/quick"))
    measured.cells[0].values[0].mean

Reads the results.json of the jobs and nothing else, so a folder that was filled on many machines gives the same table.
"""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from rap_jax.reproduce.cells import Cell, Quantity
from rap_jax.reproduce.job import Job, in_order
from rap_jax.reproduce.readings import read
from rap_jax.reproduce.tables import Table


class Value(NamedTuple):
    """A quantity of a cell, measured.

    Attributes:
      label: of the quantity.
      by_seed: in percent, seed -> value, of the seeds that are done.
      num_seeds: that were asked for.
      num_images: it was measured on; 0 before the first is done.
      paper: in percent, or None.
      jobs: where each seed was measured.
    """

    label: str
    by_seed: dict[int, float]
    num_seeds: int
    num_images: int
    paper: float | None
    jobs: tuple[Job, ...]

    @property
    def mean(self) -> float | None:
        """Over the seeds that are done, to two digits after the point, as it is written; None before the first."""
        # A half is rounded up whatever its binary form: 97.105 is 97.11.
        return round(statistics.fmean(self.by_seed.values()) + 1e-9, 2) if self.by_seed else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The lowest and the highest seed; None before the first."""
        return (min(self.by_seed.values()), max(self.by_seed.values())) if self.by_seed else None

    @property
    def difference(self) -> float | None:
        """Our mean less the paper's number, in points; None where either is missing."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper


class Size(NamedTuple):
    """Of a cell's network, first seed that is done. Attributes: parameters: whole; left: after compaction; sparsity."""

    parameters: int
    left: int | None
    sparsity: float


class MeasuredCell(NamedTuple):
    """Attributes: row, column: where it stands; values: of its quantities; size: None before its network is done."""

    row: str
    column: str
    values: tuple[Value, ...]
    size: Size | None


class Measured(NamedTuple):
    """A table as far as it is done.

    Attributes:
      table: what was asked for.
      cells: in its order.
      results: job name -> what its results.json holds, of all jobs of the table that are done, and those they need.
      missing: jobs that are not done, in the order in which they can be.
    """

    table: Table
    cells: tuple[MeasuredCell, ...]
    results: dict[str, dict[str, Any]]
    missing: tuple[Job, ...]


def collect(table: Table, out: Path) -> Measured:
    """Reads what is there.

    Raises:
      ValueError: a results.json is damaged or lacks what the table shows; names it.
    """
    jobs = in_order([*table.jobs, *(job for cell in table.cells for job in cell.network)])
    found = {job.name: job.results(out) for job in jobs}
    results = {name: result for name, result in found.items() if result is not None}
    missing = tuple(job for job in jobs if job.name not in results)
    return Measured(table, tuple(_measured(cell, results) for cell in table.cells), results, missing)


def _measured(cell: Cell, results: dict[str, dict[str, Any]]) -> MeasuredCell:
    values = tuple(_value(quantity, results) for quantity in cell.quantities)
    done = [results[job.name] for job in cell.network if job.name in results]
    return MeasuredCell(cell.row, cell.column, values, _size(done[0]) if done else None)


def _value(quantity: Quantity, results: dict[str, dict[str, Any]]) -> Value:
    found = {
        seed: read(results[job.name], quantity.reading) for seed, job in enumerate(quantity.jobs) if job.name in results
    }
    by_seed = {seed: 100 * measured.accuracy for seed, measured in found.items()}
    num_images = max((measured.num_images for measured in found.values()), default=0)
    return Value(quantity.label, by_seed, len(quantity.jobs), num_images, quantity.paper, quantity.jobs)


def _size(results: dict[str, Any]) -> Size:
    compacted = results.get("cost", {}).get("forms", {}).get("compacted")
    try:
        parameters, sparsity = results["model"]["num_params"], results["sparsity"]["overall"]["sparsity"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"The results of {results.get('name')} lack {error}; move results.json away.") from error
    return Size(parameters, compacted["parameters"] if compacted else None, sparsity)
