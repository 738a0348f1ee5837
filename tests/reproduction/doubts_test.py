"""What the evaluations warned of stands in the report of the table that shows their numbers."""

from pathlib import Path

import fake_results as fake
from fake_results import FINDING, QUICK, measured_2

from rap_jax._runtime.integrity import read_checked, write_checked
from rap_jax.reproduce.collect import collect
from rap_jax.reproduce.doubts import TITLE, as_cells, doubts, explanations
from rap_jax.reproduce.report import write_report
from rap_jax.reproduce.tables import build_table

NAME = "Square beats the gradients"


def test_what_square_breaks_is_counted_from_the_parts(tmp_path: Path) -> None:
    found = doubts(measured_2(tmp_path))
    # 2 to 1 with three seeds, 4 to 2 with two; natural and PGD accuracy come from runs, which have no parts.
    assert [(doubt.column, doubt.seed) for doubt in found] == [
        *(("to 1", n) for n in range(3)),
        ("to 2", 0),
        ("to 2", 2),
    ]
    # 1,000 images: 86.5% withstand all in the second seed, and 12 more all but Square.
    assert as_cells(found[1]) == ("w=2, to 1", "1", "87.70", "1.20", "86.50", NAME)
    assert explanations(found) == ((NAME, f"w=2, to 1, seed 0: {FINDING}"),)


def test_both_reports_show_them(tmp_path: Path) -> None:
    folder = write_report(measured_2(tmp_path), tmp_path, {})
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert TITLE in text and FINDING in text and "87.70" in text


def test_findings_without_auto_attack_are_shown_and_nothing_else(tmp_path: Path) -> None:
    table = build_table("C1", QUICK)
    fake.fill(tmp_path, table)
    assert doubts(collect(table, tmp_path)) == ()
    assert TITLE not in (write_report(collect(table, tmp_path), tmp_path, {}) / "report.md").read_text()
    path = tmp_path / "evaluations" / "cw_lenet_mnist_admm_w4_to_w2_seed1" / "results.json"
    finding = {"name": "few classes", "text": "all are eights"}
    path.write_text(write_checked(read_checked(path.read_text()) | {"findings": [finding]}))
    (doubt,) = doubts(collect(table, tmp_path))
    assert as_cells(doubt) == ("w=4, to 2", "1", "-", "-", "-", "few classes")
