"""A report names the data that was used, shows the numbers of the run and copes with a run that was stopped."""

import copy
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reported_run import LAYERS, accuracy, make_metrics, make_results, make_run, png_size, row, sparsity

from rap_jax._runtime.integrity import write_checked
from rap_jax.training import report


def test_table_has_a_row_per_evaluation() -> None:
    text = report.format_table(make_results())
    assert row(text, "pretrain") == [
        "pretrain", "98.71% [98.30, 99.03]", "93.12% [92.60, 93.55]", "6,000 validation", "121.4"
    ]  # fmt: skip
    assert row(text, "pretrain, cut")[1:] == ["45.11% [44.70, 45.43]", "11.02% [10.50, 11.45]", "6,000 validation", "-"]
    assert row(text, "admm")[4] == "1,333.0"
    assert row(text, "admm, cut")[1] == "97.02% [96.61, 97.34]"
    assert row(text, "retrain")[2] == "91.07% [90.55, 91.50]"
    assert row(text, "test")[1:] == ["98.05% [97.64, 98.37]", "90.95% [90.43, 91.38]", "10,000 test", "9.5"]


def test_table_has_sparsity_attack_and_folder() -> None:
    text = report.format_table(make_results())
    assert row(text, "conv2/kernel") == ["conv2/kernel", "12,800", "6,400", "50.00%", "16 of 32", "400 of 400"]
    assert row(text, "overall") == ["overall", "414,608", "207,304", "50.00%", "-", "-"]
    assert "- PGD on validation and test: linf, epsilon 0.3, step 0.01, 40 steps, 1 restart, random start" in text
    assert "- Run folder: /tmp/runs/lenet_mnist_filter" in text
    assert text.startswith("mnist_5k, lenet_mnist of width 4, seed 3, 414,608 parameters\n")


def test_table_lines_up_within_100_columns() -> None:
    lines = report.format_table(make_results()).splitlines()
    assert max(len(line) for line in lines) <= 100
    tables = "\n".join(line if line.startswith("|") else "" for line in lines).strip().split("\n\n")
    for table in [table.strip().splitlines() for table in tables if table.strip()]:
        places = [[place for place, letter in enumerate(line) if letter == "|"] for line in table]
        assert all(place == places[0] for place in places)


def test_different_attacks_are_both_named() -> None:
    results = make_results()
    results["test"] = accuracy(0.98, 0.9, 10000, num_steps=100)
    results["test"]["attack"].update(epsilon=8 / 255, step_size=2 / 255, num_restarts=20)
    text = report.format_table(results)
    assert "- PGD on validation: linf, epsilon 0.3, step 0.01, 40 steps, 1 restart, random start" in text
    assert "- PGD on test: linf, epsilon 8/255, step 2/255, 100 steps, 20 restarts, random start" in text


def test_stopped_run_leaves_rows_out() -> None:
    results = make_results()
    for key in ("test", "sparsity", "seconds"):
        del results[key]
    del results["stages"]["retrain"], results["stages"]["pretrain"]["cut"]
    results["stages"]["admm"] = {"seconds": 12.0}
    text = report.format_table(results)
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert names[:3] == ["Stage", ":" + "-" * 9, "pretrain"] and "test" not in names
    assert "- Cut" not in text and "Time" not in text
    assert row(text, "overall")[3] == "0.00%"


def test_a_run_that_began_with_other_weights_says_so() -> None:
    results = make_results()
    del results["stages"]["pretrain"]
    start = {"validation": accuracy(0.9712, 0.9001), "cut": accuracy(0.4313, 0.1515), "seconds": 0.0}
    results["stages"] = {"start": start} | results["stages"]
    text = report.format_table(results)
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert names[2:5] == ["start", "start, cut", "admm"]
    assert "Cut: the weights to prune set to zero at the start or after ADMM" in text


def test_run_without_any_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path, {**make_results(), "stages": {}, "test": None, "sparsity": None}, [])
    assert "The run on mnist_5k has no evaluation yet." in report.write_report(run).read_text()
    assert not list(tmp_path.glob("*.png"))


def test_report_has_headline_table_pictures_and_the_way_back(tmp_path: Path) -> None:
    path = report.write_report(make_run(tmp_path))
    text = path.read_text()
    assert path == tmp_path / "report.md"
    assert text.startswith("# lenet_mnist_filter on mnist_5k\n")
    assert (
        "With 50.00% of its weights at zero, the network classifies **98.05%** of 10,000 mnist_5k test images" in text
    )
    assert "98.71% natural and 93.12% PGD accuracy after pretrain; 98.12% natural and 91.07% PGD" in text
    assert report.format_table(make_results()).strip() in text
    assert "97.02% natural and 88.03% PGD accuracy with ADMM; 45.11% natural and 11.02% PGD accuracy without" in text
    for name in ("training", "admm", "sparsity"):
        assert f"on mnist_5k]({name}.png)" in text
        width, height = png_size(tmp_path / f"{name}.png")
        assert 700 <= width <= 2000 and 250 <= height <= 1500
        assert 10_000 <= (tmp_path / f"{name}.png").stat().st_size <= 500_000
    for part in ("python -m launch.main --flag", "ab12" * 16, "cpu x 8", "flax 0.12.8, jax 0.10.2", "Seed: 3"):
        assert part in text
    files = {"metrics.jsonl", "results.json", "report.md", "training.png", "admm.png", "sparsity.png"}
    assert {file.name for file in tmp_path.iterdir()} == files


def test_no_label_names_another_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(Figure, "suptitle", lambda self, text: titles.append(text))
    results = make_results()
    results["model"]["name"], results["name"], results["dataset"] = "lenet", "a run", "mnist_5k"
    results["command"] = "launch"
    results["run_dir"] = "/tmp"
    text = report.write_report(make_run(tmp_path, results)).read_text()
    assert text.count("mnist") == text.count("mnist_5k") >= 5
    assert len(titles) == 3 and all(title.startswith("mnist_5k, lenet of width 4: ") for title in titles)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("train", "validation"), ["training"]),
        (("train",), ["training"]),
        (("validation",), ["training"]),
        (("admm",), ["admm"]),
        ((), []),
    ],
)
def test_missing_kinds_leave_their_picture_out(tmp_path: Path, kinds: tuple[str, ...], expected: list[str]) -> None:
    lines = [line for line in make_metrics() if line["kind"] in kinds]
    text = report.write_report(make_run(tmp_path, metrics=lines)).read_text()
    pictures = sorted([*expected, "sparsity"])
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == pictures
    assert [name for name in ("admm", "sparsity", "training") if f"({name}.png)" in text] == pictures
    assert "Right after the cut" in text


def test_run_without_metrics_file(tmp_path: Path) -> None:
    (make_run(tmp_path) / "metrics.jsonl").unlink()
    assert "![Sparsity" in report.write_report(tmp_path).read_text()


def test_marked_checkpoint_is_the_last_selected_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    stars: list[tuple[list[float], list[float]]] = []
    plot = Axes.plot

    def watch(self: Any, x: Any, y: Any, style: str = "", **kwargs: Any) -> Any:
        if style == "*" and len(x):
            stars.append((list(x), list(y)))
        return plot(self, x, y, style, **kwargs)

    monkeypatch.setattr(Axes, "plot", watch)
    assert report.training_png(make_metrics(), "title")
    assert sorted({epochs[0] for epochs, _ in stars}) == [9.0, 23.0]  # stages of 10, 8 and 6 epochs
    assert len(stars) == 4 and all(len(epochs) == 1 for epochs, _ in stars)


@pytest.mark.parametrize("layers", [("conv1/kernel",), tuple(LAYERS)])
def test_panels_fill_the_pictures(monkeypatch: pytest.MonkeyPatch, layers: tuple[str, ...]) -> None:
    png = report.as_png

    def measure(figure: Any) -> bytes:
        drawn = png(figure)
        covered = sum(axes.get_position().width * axes.get_position().height for axes in figure.axes)
        assert covered > 0.3  # of the whole picture; a squeezed layout leaves 0.03
        return drawn

    monkeypatch.setattr(report, "as_png", measure)
    assert report.training_png(make_metrics(layers), "title") and report.admm_png(make_metrics(layers), "title")
    assert report.sparsity_png(sparsity(0.5), "title")


def test_values_that_are_zero_or_nan_are_drawn_without_a_warning(tmp_path: Path) -> None:
    lines = copy.deepcopy(make_metrics())
    for line in lines:
        line.update({name: 0.0 for name in ("distance", "primal_residual", "rho") if name in line})
        line.update({"loss": float("nan")} if line["kind"] == "train" else {})
    report.write_report(make_run(tmp_path, metrics=lines))
    assert png_size(tmp_path / "admm.png") and png_size(tmp_path / "training.png")


def test_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.write_report(make_run(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(source: str, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(make_run(tmp_path, metrics=make_metrics()[20:]))
    del before["metrics.jsonl"]
    (tmp_path / "metrics.jsonl").unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_results_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}/results.json cannot be read .*finish the run"):
        report.write_report(tmp_path)
    (tmp_path / "results.json").write_text('{"dataset": "mnist"')
    with pytest.raises(ValueError, match="cannot be read"):
        report.write_report(tmp_path)
    (tmp_path / "results.json").write_text(write_checked({"dataset": "mnist"}))
    with pytest.raises(ValueError, match="has no model, stages"):
        report.write_report(tmp_path)
