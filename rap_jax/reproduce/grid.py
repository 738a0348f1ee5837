"""The cells of a measured table by row and column."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rap_jax.reproduce.collect import Measured, MeasuredCell, Value


class Grid(NamedTuple):
    """A table to be drawn.

    Attributes:
      rows, columns: in the order in which the table has them first.
      labels: of all quantities, likewise.
      cells: (row, column) -> cell; a table need not have all.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    cells: Mapping[tuple[str, str], MeasuredCell]

    def value(self, row: str, column: str, label: str) -> Value | None:
        """A quantity of a cell, or None if the table has no such cell or the cell no such quantity."""
        cell = self.cells.get((row, column))
        return next((value for value in cell.values if value.label == label), None) if cell else None


def as_grid(measured: Measured) -> Grid:
    """The cells by their place."""
    cells = {(cell.row, cell.column): cell for cell in measured.cells}
    labels = dict.fromkeys(value.label for cell in measured.cells for value in cell.values)
    rows, columns = dict.fromkeys(row for row, _ in cells), dict.fromkeys(column for _, column in cells)
    return Grid(tuple(rows), tuple(columns), tuple(labels), cells)


def all_values(measured: Measured) -> Iterator[Value]:
    """Every quantity of every cell."""
    for cell in measured.cells:
        yield from cell.values
