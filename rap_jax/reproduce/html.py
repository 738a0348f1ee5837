"""A measured table as one HTML file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rap_jax.reproduce import doubts as doubts_lib
from rap_jax.reproduce import epochs as late_epochs
from rap_jax.reproduce.claim import Page
from rap_jax.reproduce.collect import Measured, MeasuredCell, Value
from rap_jax.reproduce.elements import Html, element, image, joined, table
from rap_jax.reproduce.epochs import LateEpochs
from rap_jax.reproduce.grid import Grid, as_grid
from rap_jax.reproduce.hypotheses import hypothesis
from rap_jax.reproduce.page import page
from rap_jax.reproduce.pictures import Picture, galleries
from rap_jax.reproduce.provenance import missing, numbered, numbers, sources
from rap_jax.reproduce.settings import differences, in_words
from rap_jax.reproduce.summary import REACHED, notes, summary
from rap_jax.reproduce.values import as_difference, as_number, as_seeds, as_size, as_spread, is_reached

# A difference of so many points has the second or the third shade.
_SHADES = (2.0, 5.0)
_SAME = 0.25


def table_html(
    measured: Measured,
    out: Path,
    *,
    failures: Mapping[str, str] | None = None,
    figures: Sequence[Picture] = (),
    epochs: Sequence[LateEpochs] = (),
) -> str:
    """The whole report of a table, with the pictures of its jobs inside.

    Args:
      measured: the table, as far as it is done.
      out: folder of the plan, in which the folders of the jobs lie.
      failures: name of a job that has failed -> its message.
      figures: pictures of the table.
      epochs: the late ones of the runs.
    """
    claim = hypothesis(measured)
    content = [element("p", measured.table.about), element("p", summary(measured)), _legend(), _grid(as_grid(measured))]
    content += [element("ul", *(element("li", note) for note in (*notes(measured), REACHED)))]
    content += [image(figure.png, figure.caption) for figure in figures]
    content += [
        *(_claim(claim) if claim else ()),
        *_doubts(measured),
        *_epochs(measured, epochs),
        *_settings(measured),
        *_missing(measured, failures or {}),
    ]
    content += [*_galleries(measured, out), *_provenance(measured)]
    return page(measured.table.title, *content)


def claim_html(claim: Page) -> str:
    """A page on a claim of the paper, by itself."""
    _, *content = _claim(claim)
    return page(claim.title, *content)


def shade(value: Value) -> str:
    """The class of a difference: `up1` to `up3` above the paper, `down1` to `down3` below it, else empty."""
    if value.difference is None or abs(value.difference) < _SAME:
        return ""
    step = 1 + sum(abs(value.difference) >= points for points in _SHADES)
    return f"{'up' if value.difference > 0 else 'down'}{step}"


def _grid(grid: Grid) -> Html:
    head = element("tr", element("th"), *(element("th", column, scope="col") for column in grid.columns))
    rows = []
    for row in grid.rows:
        cells = [_cell(grid.cells.get((row, column))) for column in grid.columns]
        rows.append(element("tr", element("th", row, scope="row"), *cells))
    inner = element("table", element("thead", head), element("tbody", *rows), class_="grid")
    return element("div", inner, class_="scroll", tabindex="0")


def _cell(cell: MeasuredCell | None) -> Html:
    if cell is None:
        return element("td")
    size = [element("div", as_size(cell.size), class_="size")] if cell.size else []
    return element("td", *(_value(cell, value) for value in cell.values), *size)


def _value(cell: MeasuredCell, value: Value) -> Html:
    mean = as_number(value.mean)
    about = [as_spread(value), as_seeds(value) if 0 < len(value.by_seed) < value.num_seeds else ""]
    about += ["" if value.by_seed else "missing", f"paper {as_number(value.paper)}" if value.paper is not None else ""]
    spans = [element("span", text) for text in about if text]
    return element(
        "div",
        element("span", value.label, class_="label"),
        element("span", element("a", mean, href=f"#{_anchor(cell, value)}") if value.by_seed else mean, class_="mean"),
        _chip(value),
        element("span", *spans, class_="about"),
        class_="value",
    )


def _chip(value: Value) -> Html:
    if value.difference is None:
        return element("span")
    mark = " ✓" if is_reached(value) else ""
    words = f"{as_difference(value)} points to the paper{', reached' if mark else ''}"
    return element("span", f"{as_difference(value)}{mark}", class_=f"chip {shade(value)}".strip(), title=words)


def _legend() -> Html:
    steps = ("down3", "down2", "down1", "", "up1", "up2", "up3")
    words = ("-5 or less", "-2 to -5", "to -2", "same", "to +2", "+2 to +5", "+5 or more")
    chips = [element("span", text, class_=f"chip {step}".strip()) for step, text in zip(steps, words, strict=True)]
    return element("div", "Difference to the paper, in points:", *chips, "✓ reached", class_="legend")


def _anchor(cell: MeasuredCell, value: Value) -> str:
    return f"{cell.row}/{cell.column}/{value.label}".replace(" ", "-")


def _claim(claim: Page) -> Iterator[Html]:
    yield element("h2", claim.title)
    for section in claim.sections:
        yield element("h3", section.heading)
        yield from (element("p", text) for text in section.paragraphs)
        if section.points:
            yield element("ul", *(element("li", point) for point in section.points))


def _doubts(measured: Measured) -> Iterator[Html]:
    found = doubts_lib.doubts(measured)
    if found:
        yield element("h2", doubts_lib.TITLE)
        yield element("p", doubts_lib.ABOUT, class_="faint")
        yield table(doubts_lib.HEADER, [doubts_lib.as_cells(doubt) for doubt in found])
        texts = (element("li", f"{name}: {text}") for name, text in doubts_lib.explanations(found))
        yield element("ul", *texts, class_="faint")


def _epochs(measured: Measured, epochs: Sequence[LateEpochs]) -> Iterator[Html]:
    if epochs:
        yield element("h2", late_epochs.TITLE)
        yield element("p", late_epochs.about(measured), class_="faint")
        yield table(late_epochs.HEADER, [late_epochs.as_cells(run) for run in epochs])


def _settings(measured: Measured) -> Iterator[Html]:
    found = differences(measured)
    yield element("h2", "Settings that differ from the paper's")
    yield element("p", in_words(measured, found), class_="faint")
    if not found:
        return
    yield table(("Setting", "Here", "The paper"), [(row.name, " or ".join(row.here), row.paper) for row in found])


def _missing(measured: Measured, failures: Mapping[str, str]) -> Iterator[Html]:
    jobs = missing(measured, failures)
    if not jobs and not measured.table.beyond:
        return
    yield element("h2", "What is missing")
    if measured.table.beyond:
        yield element("p", f"Wider than this scale runs: {'; '.join(measured.table.beyond)}.")
    failed = [(job, text) for job, text in jobs if text]
    for job, text in failed:
        yield element("p", "Failed: ", element("code", job.name))
        yield element("pre", element("code", text))
    waiting = [job for job, text in jobs if not text]
    if waiting:
        title = f"{len(waiting)} of {len(jobs) + len(measured.results)} jobs are not done yet"
        names = [element("li", element("code", job.name)) for job in waiting]
        yield element("details", element("summary", title), element("ul", *names))


def _galleries(measured: Measured, out: Path) -> Iterator[Html]:
    found, left_out = galleries(measured, out)
    if not found and not left_out:
        return
    yield element("h2", "Pictures of single runs")
    for gallery in found:
        pictures = [image(picture.png, picture.caption) for picture in gallery.pictures]
        inner = element("div", *pictures, class_="gallery")
        yield element("details", element("summary", gallery.title), inner)
    if left_out:
        words = (
            f"Those of {left_out} more cells are left out to keep this file small; they lie in the folders of the jobs."
        )
        yield element("p", words, class_="faint")


def _provenance(measured: Measured) -> Iterator[Html]:
    jobs = sources(measured)
    yield element("h2", "Where the numbers come from")
    if not jobs:
        yield element("p", "No job is done yet.")
        return
    places = {job.name: f"job-{number}" for number, job in enumerate(jobs)}
    yield element("details", element("summary", "Every number, by seed"), _numbers(measured, places))
    data = numbered(tuple(job.data for job in jobs), "D")
    environments = numbered(tuple(job.environment for job in jobs), "E")
    rows: list[tuple[str, ...]] = [
        (_code(s.name), s.seed, data[s.data], environments[s.environment], _code(s.command)) for s in jobs
    ]
    header = ("Job", "Seed", "Data", "Environment", "Command")
    words = element(
        "p", "Also those that others began with; the folder of a job has all of its settings in results.json."
    )
    lists = [element("li", f"{short}: ", _code(text)) for text, short in (data | environments).items()]
    title = f"Commands, data and versions of {len(jobs)} jobs"
    inner = table(header, rows, ids=tuple(places.values()))
    yield element("details", element("summary", title), words, inner, element("ul", *lists))


def _numbers(measured: Measured, places: dict[str, str]) -> Html:
    """A row for each number; the first of a value has the name to which the mean links."""
    anchors = {(c.row, c.column, v.label): _anchor(c, v) for c in measured.cells for v in c.values}
    rows: list[tuple[str, ...]] = []
    ids = []
    for n in numbers(measured):
        job = element("a", _code(n.job), href=f"#{places[n.job]}")
        rows.append((f"{n.row}, {n.column}", n.label, str(n.seed), as_number(n.percent), f"{n.num_images:,}", job))
        ids.append(anchors.pop((n.row, n.column, n.label), ""))
    return table(("Cell", "Quantity", "Seed", "Percent", "Images", "Job"), rows, ids=tuple(ids))


def _code(text: str) -> Html:
    return joined(element("code", text))
