"""The figures of a table, with the paper's numbers as hollow marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rap_jax._runtime.figure import NATURAL, NEUTRAL, ROBUST, as_png, new_figure, quiet
from rap_jax.reproduction.results import TableResults, Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito, as in `rap_jax._runtime.figure`; a mark for each, so that the lines differ in grey as well.
_COLORS = (NATURAL, ROBUST, "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_MARKS = ("o", "s", "^", "D", "v")
_PRUNED, _FIGURES = ("2", "3", "4", "5", "A1", "C1"), ("figure1", "figure3", "scratch", "rivals")
_CAPTIONS = {
    "scratch": "Accuracy of small networks by the way they were made",
    "figure1": "Accuracy by width of a dense network",
    "figure3": "Accuracy by the width that pruning leaves, for each kind of pruning",
    "rivals": "AutoAttack accuracy by the share that is removed; colour: method, mark: layer budget",
}
# Layer budget -> mark, in the figure of `rivals`.
_BUDGET_MARKS = {"layer": "o", "global": "s", "erk": "^", "lamp": "D"}
# A network that answers the most frequent class for every image has 11.35 on MNIST, 10 on CIFAR-10.
_COLLAPSED = 12.0


class Picture(NamedTuple):
    """A PNG file."""

    name: str  # of its file, without `.png`
    caption: str
    png: bytes


class _Line(NamedTuple):
    name: str  # in the legend
    color: str
    mark: str  # of its points
    points: dict[float, Value]  # by width, or by percent of zeros


class _Panel(NamedTuple):
    title: str
    lines: tuple[_Line, ...]


def draw(found: TableResults) -> tuple[Picture, ...]:
    """The figures of a table; none before its first number, and none for a table that has no widths to draw over."""
    name = found.table.name
    if name not in (*_PRUNED, *_FIGURES) or not any(value.by_seed for value in found.values):
        return ()
    rows = _panels(found)
    if not any(line.points for panels in rows for panel in panels for line in panel.lines):
        return ()  # one width, and nothing to prune it to
    caption = _CAPTIONS.get(name, "Accuracy by the width that is left")
    words = "the width that is left" if name in (*_PRUNED, "figure3") else "the width of the network"
    words = "removed, percent" if name == "rivals" else words
    png = _png(rows, found.table.title, words)
    file = name if name in _FIGURES else f"table{name}"
    hollow = "" if name == "rivals" else ", hollow: the paper's"
    return (Picture(file, f"{caption}; filled: ours with lowest and highest seed{hollow}", png),)


def _panels(found: TableResults) -> list[list[_Panel]]:
    """Rows of panels."""
    if found.table.name == "figure1":
        cases = (("natural training", "natural"), ("adversarial training", "natural"), ("adversarial training", "PGD"))
        lines = [
            _line(found, label, f"{label} accuracy, {column}", number, [(row, column) for row in found.rows])
            for number, (column, label) in enumerate(cases)
        ]
        return [[_Panel("", tuple(lines))]]
    if found.table.name == "rivals":
        return [[_rivals(found, *block) for block in found.blocks]]
    models = dict.fromkeys(f"{row.partition(', ')[0]}, " if found.table.name == "figure3" else "" for row in found.rows)
    return [
        [_Panel(f"{model}{label} accuracy", _lines(found, label, model)) for label in found.labels] for model in models
    ]


def _rivals(found: TableResults, rows: Sequence[str], columns: Sequence[str]) -> _Panel:
    """A line for each method and layer budget; a method has one colour in all panels."""
    methods = list(dict.fromkeys(row.split(", ")[1] for row in found.rows))
    lines = []
    for row in rows:
        _, method, budget = row.split(", ")
        values = {float(column.rstrip("%")): found.value(row, column, "AutoAttack") for column in columns}
        points = {percent: value for percent, value in values.items() if value}
        lines.append(_Line(f"{method}, {budget}", _COLORS[methods.index(method)], _BUDGET_MARKS[budget], points))
    return _Panel(f"{rows[0].partition(', ')[0]}, AutoAttack accuracy", tuple(lines))


def _lines(found: TableResults, label: str, model: str = "") -> tuple[_Line, ...]:
    """Of `scratch` a line for each way to a small network, else for each width or structure that is pruned."""
    if found.table.name == "scratch":
        places = {column: [(row, column) for row in found.rows] for column in found.columns}
    else:
        rows = [row for row in found.rows if row.startswith(model) and (model or found.cell(row, "to 1"))]
        names = [row.removeprefix(model) if model else f"from {row}" for row in rows]
        places = {name: [(row, column) for column in found.columns] for name, row in zip(names, rows, strict=True)}
    return tuple(_line(found, label, name, number, places[name]) for number, name in enumerate(places))


def _line(found: TableResults, label: str, name: str, number: int, places: list[tuple[str, str]]) -> _Line:
    points = dict[float, Value]()
    for row, column in places:
        width, value = _width(row, column), found.value(row, column, label)
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
    all_panels = figure.subplots(len(rows), columns, squeeze=False)
    for all_axes, panels in zip(all_panels, rows, strict=True):
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
        shift = min(0.09, 0.6 / len(panel.lines)) * (number - (len(panel.lines) - 1) / 2)
        _draw_line(axes, line, [widths.index(width) + shift for width in line.points], floor)
    axes.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
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
    high = [percent for percent in percents if percent > _COLLAPSED]
    if len(high) == len(percents) or not high:
        return None
    return min(high) - max(1.0, 0.15 * (max(high) - min(high)))


def _legend(figure: Figure, lines: Sequence[_Line], ncols: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker=line.mark, color=line.color, label=line.name) for line in lines]
    common: dict[str, Any] = {"color": NEUTRAL, "linestyle": "none", "marker": "o", "markersize": 8}
    handles.append(Line2D([], [], label="ours, lowest to highest seed", **common))
    if any(value.paper is not None for line in lines for value in line.points.values()):
        handles.append(Line2D([], [], label="the paper", markerfacecolor="white", **common))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(ncols, len(handles)), frameon=False, fontsize=8
    )
