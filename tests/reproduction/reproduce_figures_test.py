"""Figures are drawn from the numbers of a table: ours, their spread, and the paper's."""

import io
from pathlib import Path

import fake_results as fake
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rap_jax._runtime.figure import NATURAL, ROBUST
from rap_jax.reproduction import figures
from rap_jax.reproduction.figures import draw
from rap_jax.reproduction.job import Job
from rap_jax.reproduction.recipes import scale_of
from rap_jax.reproduction.results import TableResults, collect
from rap_jax.reproduction.tables import build_table


def measured(out: Path, name: str, max_width: int = 2, num_seeds: int = 1, more: float = 0.0) -> TableResults:
    """Table with accuracies under PGD that are higher by `more`."""
    table = build_table(name, scale_of("paper", max_width=max_width, num_seeds=num_seeds))

    def accuracies(job: Job) -> tuple[float, float, float]:
        natural, robust, auto = fake.by_seed(job)
        return natural, robust + more, auto

    fake.fill(out, table, accuracies)
    return collect(table, out)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)


def has(png: bytes, color: str) -> bool:
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return bool((np.abs(pixels(png) - wanted).max(-1) <= 2).any())


@pytest.mark.parametrize(
    ("name", "file", "max_width"),
    [
        ("2", "table2", 4),
        ("C1", "tableC1", 4),
        ("figure1", "figure1", 4),
        ("figure3", "figure3", 2),
        ("scratch", "scratch", 8),
    ],
)
def test_a_figure_is_a_png_of_its_table(tmp_path: Path, name: str, file: str, max_width: int) -> None:
    (figure,) = draw(measured(tmp_path, name, max_width))
    assert figure.name == file
    assert min(pixels(figure.png).shape[:2]) > 300
    assert has(figure.png, NATURAL) and has(figure.png, ROBUST)


def test_the_figure_follows_the_numbers(tmp_path: Path) -> None:
    first, again, other = (
        draw(measured(tmp_path / str(place), "2", more=more))[0].png for place, more in enumerate((0, 0, 0.01))
    )
    assert first == again
    assert first != other


def test_our_mean_the_spread_and_the_paper_are_drawn() -> None:
    value = figures.Value("PGD", {0: 90.0, 1: 93.0, 2: 96.0}, 3, 100, 11.35, ())
    axes = Figure().subplots()
    figures._draw_panel(axes, figures._Panel("", (figures._Line("a", NATURAL, "o", {4: value}),)))
    drawn = {tuple(line.get_ydata()): line.get_markerfacecolor() for line in axes.get_lines()}
    floor = axes.get_ylim()[0]
    assert set(drawn) == {(93.0,), (90.0, 96.0), (floor,)}
    assert drawn[93.0,] == NATURAL and drawn[floor,] == "white"
    assert [text.get_text() for text in axes.texts] == ["↓ 11.35"]


def test_nothing_is_drawn_without_numbers(tmp_path: Path) -> None:
    table = build_table("2", scale_of("paper", max_width=4))
    assert draw(collect(table, tmp_path)) == ()
    assert draw(measured(tmp_path, "B1")) == ()


def lines_of(found: TableResults, label: str) -> dict[str, dict[int, float | None]]:
    """Name of a line -> width -> our mean."""
    lines = figures._lines(found, label)
    return {line.name: {width: value.mean for width, value in line.points.items()} for line in lines}


def test_lines_go_over_the_width_that_is_left(tmp_path: Path) -> None:
    found = measured(tmp_path, "2", max_width=4, num_seeds=2)
    assert lines_of(found, "natural") == {
        "from w=2": {1: pytest.approx(97.1)},
        "from w=4": {1: pytest.approx(97.1), 2: pytest.approx(97.1)},
    }


def test_kinds_of_pruning_end_at_the_dense_network(tmp_path: Path) -> None:
    rows = figures._panels(measured(tmp_path, "figure3", max_width=2))
    assert [[panel.title for panel in row] for row in rows] == [
        ["vgg16, natural accuracy", "vgg16, PGD accuracy"],
        ["resnet18, natural accuracy", "resnet18, PGD accuracy"],
    ]
    assert [line.name for line in rows[0][0].lines] == ["filter", "column", "irregular"]
    for line in rows[1][0].lines:
        means = {width: value.mean for width, value in line.points.items()}
        assert means == {1: pytest.approx(97.0), 2: pytest.approx(96.0)}


def line(*percents: float) -> figures._Line:
    points = {place: fake_value(percent) for place, percent in enumerate(percents)}
    return figures._Line("a", NATURAL, "o", points)


def fake_value(percent: float) -> figures.Value:
    return figures.Value("PGD", {0: percent}, 1, 100, None, ())


def test_collapsed_networks_do_not_press_the_others_together() -> None:
    assert figures._floor([line(90.0, 94.0)]) is None
    floor = figures._floor([line(90.0, 94.0), line(11.35)])
    assert floor is not None and 85 < floor < 90
    assert figures._floor([line(93.5, 89.3), line(42.6)]) is None, "natural and adversarial accuracy in one panel"
    assert figures._floor([line(11.35, 11.35)]) is None


def test_small_networks_are_drawn_by_the_way_they_were_made(tmp_path: Path) -> None:
    found = measured(tmp_path, "scratch", max_width=8)
    lines = {line.name: line.points for line in figures._lines(found, "AutoAttack")}
    means = {name: {width: value.mean for width, value in points.items()} for name, points in lines.items()}
    assert means == {
        "from scratch, paper's recipe": {},
        "from scratch, with a ramp": {1: 85.0, 2: 85.0},
        "pruned from 4": {1: 86.0, 2: 86.0},
        "pruned from 8": {1: 86.0, 2: 86.0},
    }
    natural = {line.name: line.points for line in figures._lines(found, "natural")}
    assert natural["from scratch, paper's recipe"][1].paper == 11.35


def test_one_width_that_is_pruned_to_nothing_has_no_figure(tmp_path: Path) -> None:
    assert draw(measured(tmp_path / "one", "2", max_width=1)) == ()
    assert len(draw(measured(tmp_path / "two", "2"))) == 1
