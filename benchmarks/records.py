"""Results of a benchmark as `.json`, `.md` and a plot in `benchmarks/results/`.

Rows are merged: a run that measured one row replaces that row and leaves the others, and each row says when and on what
it was measured.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import describe_machine, machine_line

RESULTS = Path(__file__).parent / "results"

Rows = dict[str, dict[str, Any]]


class Column(NamedTuple):
    """A column of the table. Attributes: key: in a row; title; format: of its value, such as `.2f`."""

    key: str
    title: str
    format: str = ""


class Plot(NamedTuple):
    """Bars, one per row. Attributes: key: of the value; label: of the axis; level: where a line is drawn, if any."""

    key: str
    label: str
    level: float | None = None


def write_records(
    name: str, rows: Rows, *, about: str, columns: Sequence[Column], order: Sequence[str], plot: Plot | None = None
) -> Rows:
    """Merges `rows` into the results called `name` and writes all three files.

    Args:
      name: of the files.
      rows: what was measured now, by name of the row.
      about: lines that stand above the table: what is measured, and how.
      columns: of the table; a row may lack some.
      order: names of all rows, in the order of the table; others that were measured before come last.
      plot: the picture, or None for none.

    Returns:
      All rows, those of earlier runs too.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before: Rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    machine = describe_machine()
    merged = before | {row: values | {"measured": machine} for row, values in rows.items()}
    names = [row for row in order if row in merged] + [row for row in merged if row not in order]
    found = {row: merged[row] for row in names}
    path.write_text(json.dumps({"about": about, "rows": found}, indent=1) + "\n")
    machines = dict.fromkeys(machine_line(values["measured"]) for values in found.values())
    lines = [f"# {name}", "", about, "", markdown_table(found, columns), "", *(f"- {line}" for line in machines)]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    if plot is not None:
        _draw(RESULTS / f"{name}.png", found, plot)
    return found


def markdown_table(rows: Rows, columns: Sequence[Column]) -> str:
    """The rows as a table; a value that a row lacks is left empty."""
    lines = ["| | " + " | ".join(column.title for column in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, values in rows.items():
        cells = [format(values[c.key], c.format) if values.get(c.key) is not None else "" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _draw(path: Path, rows: Rows, plot: Plot) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    values = {name: row[plot.key] for name, row in rows.items() if row.get(plot.key) is not None}
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.4 * len(values)), layout="constrained")
    bars = axes.barh(list(values), list(values.values()), color="#4477aa")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    if plot.level is not None:
        axes.axvline(plot.level, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel(plot.label)
    axes.margins(x=0.12)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
