"""The settings in which a reproduction differs from the paper are read from the runs, and the others are not listed."""

from pathlib import Path

import fake_results as fake
import pytest

from rap_jax.reproduce.collect import collect
from rap_jax.reproduce.scale import Scale, scale_of
from rap_jax.reproduce.settings import Difference, differences
from rap_jax.reproduce.tables import build_table

# What differs at the paper's scale: the test set chooses nothing, a part of the images validates, u is a constant.
ALWAYS = {"Data", "Epoch that is kept", "Gradient of the penalty"}


def found(out: Path, name: str, scale: Scale) -> dict[str, Difference]:
    """The differences of a table of which the first seed is done, by the name of the setting."""
    table = build_table(name, scale)
    fake.fill(out, table, without=lambda job: fake.seed_of(job) > 0)
    return {difference.name: difference for difference in differences(collect(table, out))}


def paper(max_width: int = 2, num_seeds: int = 1) -> Scale:
    return scale_of("paper", num_seeds=num_seeds, max_width=max_width)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("2", set()),
        ("3", set()),
        ("4", {"Training"}),  # BatchNorm inside the attack
        ("figure1", {"Training"}),
        ("6", set()),
    ],
)
def test_the_recipes_of_the_paper_have_its_settings(tmp_path: Path, name: str, more: set[str]) -> None:
    expected = (ALWAYS | more) - (
        {"Gradient of the penalty"} if name == "figure1" else set()
    )  # nothing is pruned there
    assert set(found(tmp_path, name, paper(max_width=4))) == expected


def test_seeds_are_runs_of_a_cell(tmp_path: Path) -> None:
    assert found(tmp_path, "2", paper(num_seeds=2))["Runs of a cell"].here == ("2, their mean",)


def test_the_small_scale_says_what_is_small(tmp_path: Path) -> None:
    rows = found(tmp_path, "2", scale_of("quick", num_seeds=1, max_width=2))
    assert rows["Batch"] == Difference("Batch", ("128",), "64")
    assert rows["Epochs of pretrain"][1:] == (("6",), "83")
    assert rows["Epochs of retrain"][1:] == (("18",), "83")
    assert rows["Optimizer of admm"].here == ("adam, learning rate 0.003, cosine",)
    assert "step 0.075, 10 steps" in rows["Training"].here[0]
    assert "step 0.01, 40 steps" in rows["Training"].paper
    assert rows["Radius of the attack"].here == ("rises from 0 over the first 2 epochs of pretrain",)
    assert rows["rho of a layer"].here == ("follows its gradient and its weights",)
    assert rows["Epoch that is kept"].here[0].startswith("the best on 6,000 validation images")
    assert "Attack that is reported" not in rows, "it is the paper's"


def test_a_changed_flag_shows(tmp_path: Path) -> None:
    flags = ("--batch_size=32", "--label_smoothing=0.1", "--dual_interval_unit=steps", "--report_num_steps=7",
             "--dual_keeps_graph")  # fmt: skip
    scale = scale_of("paper", num_seeds=1, max_width=2, mnist_flags=flags)
    rows = found(tmp_path, "2", scale)
    assert rows["Batch"].here == ("32",)
    assert rows["Training"].here[0].endswith("label smoothing 0.1")
    assert rows["Between dual steps"].here == ("4 steps",)
    assert "Gradient of the penalty" not in rows, "u keeps its graph, as theirs"
    assert "7 steps" in rows["Attack that is reported"].here[0]


def test_runs_that_differ_are_both_named(tmp_path: Path) -> None:
    rows = found(tmp_path, "5", scale_of("quick", num_seeds=1, max_width=2))
    assert rows["Epochs of retrain"].here == ("18", "30")
    assert rows["Radius of the attack"].here == tuple(
        f"rises from 0 over the first 2 epochs of {stage}" for stage in ("pretrain", "retrain")
    )


def test_what_a_table_is_about_is_no_difference(tmp_path: Path) -> None:
    rows = found(tmp_path, "B1", paper(num_seeds=3))
    assert "Optimizer of pretrain" not in rows
    assert "Epochs of pretrain" not in rows
    quick = found(tmp_path / "quick", "B1", scale_of("quick", num_seeds=1))
    assert quick["Epochs of pretrain"][1:] == (("30",), "300")
    assert rows["Runs of a cell"][1:] == (("3, their mean",), "10, their mean")
    assert "Runs of a cell" not in found(tmp_path, "B1", paper(num_seeds=10))


def test_an_evaluation_with_another_attack_shows(tmp_path: Path) -> None:
    table = build_table("6", paper(max_width=4))
    written = fake.fill(tmp_path, table)
    job = next(job for job in table.jobs if job.name.startswith("transfer"))
    attack = written[job.name]["pgd"]["attack"] | {"num_steps": 9}
    fake.write(tmp_path, job, written[job.name] | {"pgd": {"attack": attack}})
    (row,) = (row for row in differences(collect(table, tmp_path)) if row.name == "Attack that is reported")
    assert row.here == ("linf, epsilon 0.3, step 0.01, 9 steps, 1 restart, random start",)


def test_nothing_differs_before_the_first_run(tmp_path: Path) -> None:
    assert differences(collect(build_table("2", paper()), tmp_path)) == ()
