"""The figures of a table: our means with the spread of the seeds, and the paper's numbers as hollow marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rap_jax._runtime.figure import NATURAL, NEUTRAL, ROBUST, as_png, new_figure, quiet
from rap_jax.reproduce.claim import COLLAPSED
from rap_jax.reproduce.collect import Measured, Value
from rap_jax.reproduce.grid import Grid, all_values, as_grid
from rap_jax.reproduce.pictures import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito, as in `rap_jax._runtime.figure`, and a mark for each, so that the lines differ in grey as well.
_COLORS = (NATURAL, ROBUST, "#009E73", "#CC79A7", "#000000")
_MARKS = ("o", "s", "^", "D", "v")
_PRUNED, _FIGURES = ("2", "3", "4", "5", "A1", "C1"), ("figure1", "figure3", "scratch")
_CAPTIONS = {
    "scratch": "Accuracy of small networks by the way they were made",
    "figure1": "Accuracy by width of a dense network",
    "figure3": "Accuracy by the width that pruning leaves, for each kind of pruning",
}


class _Line(NamedTuple):
    """Attributes: name: in the legend; color, mark: of its points; points: width -> value."""

    name: str
    color: str
    mark: str
    points: dict[int, Value]


class _Panel(NamedTuple):
    """Attributes: title: above it; lines: in it."""

    title: str
    lines: tuple[_Line, ...]


def draw(measured: Measured) -> tuple[Picture, ...]:
    """The figures of a table; none before its first number, and none for a table that has no widths to draw over."""
    name = measured.table.name
    if name not in (*_PRUNED, *_FIGURES) or not any(value.by_seed for value in all_values(measured)):
        return ()
    grid = as_grid(measured)
    if name == "figure1":
        rows = [[_figure_1(grid)]]
    elif name == "figure3":
        rows = _figure_3(grid)
    elif name == "scratch":
        rows = [[_Panel(f"{label} accuracy", tuple(_by_way(grid, label))) for label in grid.labels]]
    else:
        rows = [[_Panel(f"{label} accuracy", tuple(_by_start(grid, label))) for label in grid.labels]]
    if not any(line.points for panels in rows for panel in panels for line in panel.lines):
        return ()  # one width, and nothing to prune it to
    caption = _CAPTIONS.get(name, "Accuracy by the width that is left")
    words = "the width that is left" if name in (*_PRUNED, "figure3") else "the width of the network"
    png = _png(rows, measured.table.title, words)
    file = name if name in _FIGURES else f"table{name}"
    return (Picture(file, f"{caption}; filled: ours with lowest and highest seed, hollow: the paper's", png),)


def _by_start(grid: Grid, label: str) -> Iterable[_Line]:
    """A line for each width that is pruned."""
    for number, row in enumerate(row for row in grid.rows if (row, "to 1") in grid.cells):
        yield _line(grid, label, f"from {row}", number, [(row, column) for column in grid.columns])


def _by_way(grid: Grid, label: str) -> Iterable[_Line]:
    """A line for each way to a small network."""
    for number, column in enumerate(grid.columns):
        yield _line(grid, label, column, number, [(row, column) for row in grid.rows])


def _figure_1(grid: Grid) -> _Panel:
    cases = (("natural training", "natural"), ("adversarial training", "natural"), ("adversarial training", "PGD"))
    lines = [
        _line(grid, label, f"{label} accuracy, {column}", number, [(row, column) for row in grid.rows])
        for number, (column, label) in enumerate(cases)
    ]
    return _Panel("", tuple(lines))


def _figure_3(grid: Grid) -> list[list[_Panel]]:
    models = dict.fromkeys(row.partition(", ")[0] for row in grid.rows)
    panels = []
    for model in models:
        rows = [row for row in grid.rows if row.startswith(f"{model}, ")]
        panels.append([_Panel(f"{model}, {label} accuracy", _by_kind(grid, rows, label)) for label in grid.labels])
    return panels


def _by_kind(grid: Grid, rows: list[str], label: str) -> tuple[_Line, ...]:
    return tuple(
        _line(grid, label, row.partition(", ")[2], number, [(row, column) for column in grid.columns])
        for number, row in enumerate(rows)
    )


def _line(grid: Grid, label: str, name: str, number: int, places: list[tuple[str, str]]) -> _Line:
    points = {}
    for row, column in places:
        width, value = _width(row, column), grid.value(row, column, label)
        if width and value:
            points[width] = value
    return _Line(name, _COLORS[number % len(_COLORS)], _MARKS[number % len(_MARKS)], points)


def _width(row: str, column: str) -> int:
    """Of the network in a cell; 0 for the dense ones beside pruned ones, which are no point of their lines."""
    for text in (column, row):
        for start in ("to ", "w="):
            if text.startswith(start):
                return int(text.removeprefix(start))
        if text in ("natural", "adversarial"):
            return 0
    return 0


def _png(rows: Sequence[Sequence[_Panel]], title: str, words: str) -> bytes:
    columns = max(len(row) for row in rows)
    figure = new_figure(max(6.5, 4 * columns), 3.4 * len(rows) + 0.9)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for all_axes, panels in zip(grid, rows, strict=True):
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw_panel(axes, panel)
            axes.set_xlabel(words)
        all_axes[0].set_ylabel("accuracy, percent")
    _legend(figure, rows[0][0].lines, 2 if columns == 1 else 6)
    figure.suptitle(title)
    return as_png(figure)


def _draw_panel(axes: Axes, panel: _Panel) -> None:
    widths = sorted({width for line in panel.lines for width in line.points})
    floor = _floor(panel.lines)
    for number, line in enumerate(panel.lines):
        # Side by side, so that points of one width do not hide each other.
        shift = 0.09 * (number - (len(panel.lines) - 1) / 2)
        _draw_line(axes, line, [widths.index(width) + shift for width in line.points], floor)
    axes.set_xticks(range(len(widths)), [str(width) for width in widths])
    axes.set_xlim(-0.5, len(widths) - 0.5)
    if floor is not None:
        axes.set_ylim(bottom=floor)
    axes.set_title(panel.title, fontsize=10)
    quiet(axes)


def _draw_line(axes: Axes, line: _Line, places: list[float], floor: float | None) -> None:
    """Our means with their spread, and the numbers of the paper; below the floor, on it and in words."""
    points = list(zip(places, line.points.values(), strict=True))
    ours = [(place, value.mean) for place, value in points if value.mean is not None]
    theirs = [(place, value.paper) for place, value in points if value.paper is not None]
    mark: dict[str, Any] = {"marker": line.mark, "color": line.color, "clip_on": False}
    _draw_points(axes, ours, floor, linewidth=1.3, markersize=6, zorder=3, **mark)
    _draw_points(axes, theirs, floor, linestyle="none", markerfacecolor="white", markersize=8, zorder=2, **mark)
    for place, value in points:
        if value.spread and value.spread[0] != value.spread[1]:
            ends = [_shown(end, floor) for end in value.spread]
            axes.plot([place, place], ends, color=line.color, linewidth=1.3, marker="_", markersize=7)


def _draw_points(axes: Axes, points: list[tuple[float, float]], floor: float | None, **style: Any) -> None:
    if not points:  # an unclipped line without points would upset the layout
        return
    axes.plot([place for place, _ in points], [_shown(percent, floor) for _, percent in points], **style)
    for place, percent in points:
        if floor is not None and percent < floor:
            words, where = f"↓ {percent:.2f}", (place, floor)
            axes.annotate(
                words, where, (0, 7), textcoords="offset points", ha="center", fontsize=7, color=style["color"]
            )


def _shown(percent: float, floor: float | None) -> float:
    return percent if floor is None else max(percent, floor)


def _floor(lines: Iterable[_Line]) -> float | None:
    """Where the axis ends below, if some networks have collapsed: they would press all others together.

    None where none or all have.
    """
    values = [value for line in lines for value in line.points.values()]
    percents = [
        percent for value in values for percent in (*value.by_seed.values(), value.paper) if percent is not None
    ]
    high = [percent for percent in percents if percent > COLLAPSED]
    if len(high) == len(percents) or not high:
        return None
    return min(high) - max(1.0, 0.15 * (max(high) - min(high)))


def _legend(figure: Figure, lines: Sequence[_Line], ncols: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker=line.mark, color=line.color, label=line.name) for line in lines]
    common: dict[str, Any] = {"color": NEUTRAL, "linestyle": "none", "marker": "o", "markersize": 8}
    handles.append(Line2D([], [], label="ours, lowest to highest seed", **common))
    handles.append(Line2D([], [], label="the paper", markerfacecolor="white", **common))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(ncols, len(handles)), frameon=False, fontsize=8
    )
