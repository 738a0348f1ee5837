"""The HTML report is one well-formed file that needs nothing else, escapes what it shows, and colours by the sign."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import fake_results as fake
import pytest
from fake_results import HOSTILE, measured_2

from rap_jax.reproduction.figures import Picture
from rap_jax.reproduction.formats import as_difference, shade
from rap_jax.reproduction.job import Job
from rap_jax.reproduction.report import as_html, sections
from rap_jax.reproduction.results import TableResults, Value, collect

PNG = b"\x89PNG\r\n\x1a\n"
Attributes = dict[str, str]


class Page(HTMLParser):
    """The elements of a page with their attributes and texts; fails at one that is not closed in its turn."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[int] = []
        self.elements: list[tuple[str, Attributes, list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in ("meta", "img"):
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for place in self.open:
            self.elements[place][2].append(data)

    def having(self, tag: str, class_: str = "") -> list[tuple[Attributes, str]]:
        """Attributes and text of all elements of a tag, and of a class if one is given."""
        return [
            (attributes, "".join(texts))
            for name, attributes, texts in self.elements
            if name == tag and (not class_ or class_ in attributes.get("class", "").split())
        ]


def html_of(measured: TableResults, out: Path, failures: dict[str, str] | None = None) -> str:
    return as_html(measured, sections(measured, out, failures or {}, {}))


def page_of(measured: TableResults, out: Path, failures: dict[str, str] | None = None) -> Page:
    return Page(html_of(measured, out, failures))


def value(ours: float, paper: float | None, label: str = "PGD") -> Value:
    return Value(label, {0: ours}, 1, 100, paper, (Job("a", "launch.main", ()),))


@pytest.mark.parametrize(
    ("difference", "expected"),
    [(0.2, ""), (-0.2, ""), (0.3, "up1"), (-0.3, "down1"), (2.1, "up2"), (-2.1, "down2"), (80, "up3"), (-5.1, "down3")],
)
def test_shades(difference: float, expected: str) -> None:
    assert shade(value(15 + difference, 15.0)) == expected
    assert shade(value(15 + difference, None)) == ""


@pytest.mark.parametrize(
    ("label", "ours", "expected"),
    [
        ("natural", 90.0, True),
        ("natural", 88.2, True),  # 88.2 - 89.2 is a little below -1 in floats
        ("natural", 88.19, False),
        ("PGD", 87.7, True),
        ("PGD", 87.69, False),
        ("C&W", 87.7, True),
    ],
)
def test_reached(label: str, ours: float, expected: bool) -> None:
    assert value(ours, 89.2, label).is_reached == expected
    assert not value(ours, None, label).is_reached


def test_differences_are_written_with_their_sign() -> None:
    texts = [as_difference(value(ours, 90.0)) for ours in (91.0, 89.0, 90.001, 89.999)]
    assert texts == ["+1.00", "-1.00", "0.00", "0.00"]


def test_cells_show_means_and_coloured_differences(tmp_path: Path) -> None:
    measured = measured_2(tmp_path)
    page = page_of(measured, tmp_path)
    values = [value for cell in measured.cells for value in cell.values]
    shown = page.having("div", "value")
    assert len(shown) == len(values)
    for (_, text), expected in zip(shown, values, strict=True):
        mean = sum(expected.by_seed.values()) / len(expected.by_seed) if expected.by_seed else None
        assert text.startswith(expected.label + (f"{mean:.2f}" if mean is not None else "-"))
        assert ("missing" in text) == (mean is None)
        assert (f"paper {expected.paper:.2f}" in text) if expected.paper is not None else ("paper" not in text)
    chips = [(attributes["class"], text) for attributes, text in page.having("span", "chip") if "title" in attributes]
    assert len(chips) == sum(value.difference is not None for value in values)
    for name, text in chips:
        points = float(text.split()[0])
        side = "up" if points > 0 else "down"
        assert (side in name) if abs(points) > 0.3 else (name == "chip" or side in name)
        assert not ("up" in name and points < 0) and not ("down" in name and points > 0)
    assert [text.endswith("✓") for _, text in chips] == [
        value.is_reached for value in values if value.difference is not None
    ]
    assert {"up3", "down2"} <= {name.split()[-1] for name, _ in chips}


def test_cells_show_their_size(tmp_path: Path) -> None:
    sizes = [text for _, text in page_of(measured_2(tmp_path), tmp_path).having("div", "size")]
    assert "52,506 parameters, 9.5 minutes" in sizes, "a dense network is not smaller after compaction"
    assert "206,954 parameters, 51,738 after compaction, 75.00% zeros, 91,584 multiply-adds, 19.0 minutes" in sizes


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    page = page_of(measured_2(tmp_path), tmp_path)
    assert {"html", "head", "body", "main", "h1"} <= {name for name, _, _ in page.elements}
    assert not {"script", "link", "iframe", "object"} & {name for name, _, _ in page.elements}
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [attributes["href"] for attributes, _ in page.having("a")]
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)
    assert "url(" not in page.having("style")[0][1]


def test_texts_are_escaped(tmp_path: Path) -> None:
    measured = measured_2(tmp_path)
    job = next(job for job in fake.all_jobs(measured.table) if job.name in measured.results)
    fake.write(tmp_path, job, measured.results[job.name] | {"command": HOSTILE, "device": HOSTILE, "dataset": HOSTILE})
    measured = collect(measured.table, tmp_path)
    failed = measured.missing[0].name
    page = page_of(measured, tmp_path, failures={failed: HOSTILE})
    assert HOSTILE in [text for _, text in page.having("code")]
    assert f"{failed}: {HOSTILE}" in [text for _, text in page.having("li")]
    assert not page.having("script")


def test_the_figures_are_inside(tmp_path: Path) -> None:
    measured = measured_2(tmp_path)
    figures = [Picture("one", "Its <caption>", PNG + b"one"), Picture("two", "", PNG + b"two")]
    page = Page(as_html(measured, sections(measured, tmp_path, {}, {}), figures))
    sources = [attributes["src"] for attributes, _ in page.having("img")]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert [base64.b64decode(source.partition(",")[2]) for source in sources] == [figure.png for figure in figures]
    assert page.having("figcaption")[0][1] == "Its <caption>"


def test_the_place_of_a_machine_is_not_in_the_report(tmp_path: Path) -> None:
    measured = measured_2(tmp_path)
    for job in fake.all_jobs(measured.table):
        if job.name in measured.results:
            command = " ".join(job.command(Path("results/quick")))
            fake.write(tmp_path, job, measured.results[job.name] | {"command": command})
    text = html_of(collect(measured.table, tmp_path), tmp_path)
    # The config of a run knows where it started from; the report takes no place from there.
    assert str(tmp_path) in json.dumps(measured.results)
    assert str(tmp_path) not in text
    assert re.search("--out_dir=results/quick/runs/lenet_mnist_dense_w4_seed0", text)
