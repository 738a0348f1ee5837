"""A measured table as Markdown."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rap_jax._runtime.text import as_percent, as_table
from rap_jax.reproduce import doubts as doubts_lib
from rap_jax.reproduce import epochs as late_epochs
from rap_jax.reproduce.claim import Page
from rap_jax.reproduce.collect import Measured
from rap_jax.reproduce.epochs import LateEpochs
from rap_jax.reproduce.grid import Grid, as_grid
from rap_jax.reproduce.hypotheses import hypothesis
from rap_jax.reproduce.pictures import Picture
from rap_jax.reproduce.provenance import missing, numbered, numbers, sources
from rap_jax.reproduce.settings import differences, in_words
from rap_jax.reproduce.summary import REACHED, notes, summary
from rap_jax.reproduce.values import as_difference, as_number, as_seeds, as_spread, is_reached

_BLANK = ""


def table_markdown(
    measured: Measured,
    *,
    failures: Mapping[str, str] | None = None,
    figures: Sequence[Picture] = (),
    epochs: Sequence[LateEpochs] = (),
) -> str:
    """The whole report of a table.

    Args:
      measured: the table, as far as it is done.
      failures: name of a job that has failed -> its message.
      figures: pictures that lie beside the report.
      epochs: the late ones of the runs.
    """
    page = hypothesis(measured)
    parts = [f"# {plain(measured.table.title)}", plain(measured.table.about), summary(measured), *_grids(measured)]
    parts += ["\n".join(f"- {note}" for note in (*notes(measured), REACHED))]
    parts += [f"![{plain(figure.caption)}]({figure.name}.png)" for figure in figures]
    parts += ["## Cells", _cells(measured), *(_page(page) if page else ())]
    parts += _doubts(measured)
    parts += [f"## {late_epochs.TITLE}", late_epochs.about(measured), _epochs(epochs)] if epochs else []
    parts += ["## Settings that differ from the paper's", _settings(measured)]
    parts += _missing(measured, failures or {})
    parts += ["## Where the numbers come from", *_provenance(measured)]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in a line of its own or in a table."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text as code, in a line of its own or in a table, whatever it holds."""
    line = " ".join(text.split()).replace("|", r"\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}" if line else ""


def _grids(measured: Measured) -> Iterator[str]:
    grid = as_grid(measured)
    for label in grid.labels:
        used = [row for row in grid.rows if any(grid.value(row, column, label) for column in grid.columns)]
        columns = [column for column in grid.columns if any(grid.value(row, column, label) for row in grid.rows)]
        has_paper = any(
            value.paper is not None for cell in measured.cells for value in cell.values if value.label == label
        )
        rows = [(plain(row), *(_in_grid(grid, row, column, label) for column in columns)) for row in used]
        yield f"## {plain(label)} accuracy{', ours (the paper)' if has_paper else ''}"
        yield as_table(("", *map(plain, columns)), rows)


def _in_grid(grid: Grid, row: str, column: str, label: str) -> str:
    value = grid.value(row, column, label)
    if value is None:
        return _BLANK
    partly = f", {as_seeds(value)}" if 0 < len(value.by_seed) < value.num_seeds else ""
    given = f" ({as_number(value.paper)})" if value.paper is not None else ""
    return f"{as_number(value.mean)}{partly}{given}"


def _cells(measured: Measured) -> str:
    rows = []
    for cell in measured.cells:
        size = cell.size
        left = f"{size.left:,}" if size and size.left is not None else "-"
        sizes = (f"{size.parameters:,}", left, as_percent(size.sparsity)) if size else ("-", "-", "-")
        for place, value in enumerate(cell.values):
            reached = ("yes" if is_reached(value) else "no") if value.difference is not None else "-"
            name = plain(f"{cell.row}, {cell.column}: {value.label}")
            ours = (as_number(value.mean), as_spread(value) or "-", as_seeds(value))
            theirs = (as_number(value.paper), as_difference(value), reached)
            rows.append((name, *ours, *theirs, *(sizes if place == 0 else (_BLANK,) * 3)))
    header = ("Cell", "Ours", "Lowest to highest", "Done", "Paper", "Difference", "Reached", "Parameters",
              "After compaction", "Zeros")  # fmt: skip
    return as_table(header, rows)


def _doubts(measured: Measured) -> Iterator[str]:
    found = doubts_lib.doubts(measured)
    if found:
        yield f"## {doubts_lib.TITLE}"
        yield doubts_lib.ABOUT
        yield as_table(doubts_lib.HEADER, [tuple(map(plain, doubts_lib.as_cells(doubt))) for doubt in found])
        yield _list(f"{plain(name)}: {plain(text)}" for name, text in doubts_lib.explanations(found))


def _epochs(epochs: Sequence[LateEpochs]) -> str:
    return as_table(late_epochs.HEADER, [tuple(map(plain, late_epochs.as_cells(run))) for run in epochs])


def _page(page: Page) -> Iterator[str]:
    yield f"## {plain(page.title)}"
    for section in page.sections:
        yield f"### {plain(section.heading)}"
        yield from map(plain, section.paragraphs)
        yield "\n".join(f"- {plain(point)}" for point in section.points)


def page_markdown(page: Page) -> str:
    """A page on a claim of the paper, by itself."""
    title, *parts = _page(page)
    return "\n\n".join([title.removeprefix("#"), *(part.removeprefix("#") for part in parts if part)]) + "\n"


def _settings(measured: Measured) -> str:
    found = differences(measured)
    words = in_words(measured, found)
    if not found:
        return words
    lines = (f"{row.name}: **{plain(' or '.join(row.here))}**; the paper: {plain(row.paper)}" for row in found)
    return f"{words}\n\n{_list(lines)}"


def _missing(measured: Measured, failures: Mapping[str, str]) -> Iterator[str]:
    jobs = missing(measured, failures)
    if not jobs and not measured.table.beyond:
        return
    yield "## What is missing"
    if measured.table.beyond:
        yield f"Wider than this scale runs: {plain('; '.join(measured.table.beyond))}."
    failed = [(job, text) for job, text in jobs if text]
    if failed:
        yield "Failed:"
        yield _list(f"{code(job.name)}: {code(text)}" for job, text in failed)
    waiting = [job for job, text in jobs if not text]
    if waiting:
        yield f"Not done yet, {len(waiting)} of {len(jobs) + len(measured.results)} jobs:"
        yield _list(code(job.name) for job in waiting)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _provenance(measured: Measured) -> Iterator[str]:
    jobs = sources(measured)
    if not jobs:
        yield "No job is done yet."
        return
    yield "Every number, by seed:"
    rows = [
        (
            plain(f"{n.row}, {n.column}"),
            plain(n.label),
            str(n.seed),
            as_number(n.percent),
            f"{n.num_images:,}",
            code(n.job),
        )
        for n in numbers(measured)
    ]
    yield as_table(("Cell", "Quantity", "Seed", "Percent", "Images", "Job"), rows)
    data = numbered(tuple(job.data for job in jobs), "D")
    environments = numbered(tuple(job.environment for job in jobs), "E")
    yield "Every job, also those that others began with; its folder has all of its settings in `results.json`:"
    yield _list(
        f"{code(s.name)}, seed {plain(s.seed)}, {data[s.data]}, {environments[s.environment]}: {code(s.command)}"
        for s in jobs
    )
    yield _list(f"{short}: {plain(text)}" for text, short in (data | environments).items())
