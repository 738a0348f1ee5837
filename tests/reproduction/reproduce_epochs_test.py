"""How far the epochs of a run lie apart, read from its metrics.jsonl, and the section of the report that says so."""

import json
from pathlib import Path
from typing import Any

import fake_results as fake
from fake_results import QUICK

from rap_jax.reproduce.collect import Measured, collect
from rap_jax.reproduce.epochs import TITLE, LateEpochs, as_cells, late_epochs
from rap_jax.reproduce.report import write_report
from rap_jax.reproduce.scale import scale_of
from rap_jax.reproduce.tables import build_table


def validation(stage: str, step: int, robust: float, *, selected: bool = False) -> dict[str, Any]:
    return {
        "kind": "validation", "stage": stage, "step": step, "epoch": step / 10, "natural_accuracy": 0.97,
        "robust_accuracy": robust, "selected": selected,
    }  # fmt: skip


def write_metrics(out: Path, name: str, lines: list[dict[str, Any]], torn: str = "") -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "runs" / name / "metrics.jsonl").write_text(text + torn)


def measured(out: Path) -> Measured:
    table = build_table("2", QUICK)
    fake.fill(out, table)
    return collect(table, out)


def test_only_the_last_third_of_the_last_stage_counts_and_the_epoch_kept_last(tmp_path: Path) -> None:
    found = measured(tmp_path)
    retrain = [0.80, 0.90, 0.82, 0.84, 0.86, 0.83, 0.81]  # a third of 7 is rounded up
    write_metrics(
        tmp_path,
        "lenet_mnist_admm_w4_to_w2_seed1",
        [
            validation("pretrain", 900, 0.99, selected=True),
            validation("retrain", 5, 0.1) | {"kind": "train", "loss": 2.0, "accuracy": 0.5},
            *(validation("retrain", 10 * n, robust, selected=n in (0, 1)) for n, robust in enumerate(retrain)),
            # A run that went on repeats a step: what it said last counts.
            validation("retrain", 60, 0.85),
        ],
        torn='{"kind": "validation", "stage": "retr',
    )
    assert late_epochs(found, tmp_path) == (
        LateEpochs("w=4", "to 2", 1, "lenet_mnist_admm_w4_to_w2_seed1", 7, 90.0, (86.0, 83.0, 85.0)),
    )
    assert as_cells(late_epochs(found, tmp_path)[0]) == (
        "w=4, to 2", "1", "5 to 7", "90.00", "84.67", "83.00 to 86.00", "85.00",
    )  # fmt: skip


def test_natural_training_a_single_epoch_and_no_validation_say_nothing(tmp_path: Path) -> None:
    found = measured(tmp_path)
    many = [validation("pretrain", step, 0.5, selected=True) for step in range(6)]
    write_metrics(tmp_path, "lenet_mnist_natural_w2_seed0", many)
    write_metrics(tmp_path, "lenet_mnist_dense_w2_seed0", many[:1])
    write_metrics(tmp_path, "lenet_mnist_dense_w4_seed0", [])
    assert late_epochs(found, tmp_path) == ()
    write_metrics(tmp_path, "lenet_mnist_dense_w2_seed0", many)
    assert [(run.row, run.column) for run in late_epochs(found, tmp_path)] == [("w=2", "adversarial")]


def test_a_stage_that_selects_nothing_keeps_its_last_epoch(tmp_path: Path) -> None:
    found = measured(tmp_path)
    lines = [validation("admm", step, robust) for step, robust in enumerate((0.9, 0.7, 0.8, 0.6))]
    write_metrics(tmp_path, "lenet_mnist_admm_w4_to_w1_seed0", lines)
    assert late_epochs(found, tmp_path) == (
        LateEpochs("w=4", "to 1", 0, "lenet_mnist_admm_w4_to_w1_seed0", 4, 60.0, (80.0, 60.0)),
    )


def test_both_reports_show_it_and_only_where_there_is_something(tmp_path: Path) -> None:
    found = measured(tmp_path)
    folder = write_report(found, tmp_path, {})
    assert TITLE not in (folder / "report.md").read_text() + (folder / "report.html").read_text()
    lines = [validation("pretrain", step, robust, selected=True) for step, robust in enumerate((0.1, 0.5, 0.432))]
    write_metrics(tmp_path, "lenet_mnist_dense_w4_seed2", [*lines, validation("pretrain", 4, 0.4)])
    write_report(found, tmp_path, {})
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert TITLE in text and "40.00 to 43.20" in text and "41.60" in text
        # Not the attack of the numbers above it.
        assert "an epoch is chosen: PGD, linf, epsilon 0.3, step 0.075, 10 steps, 1 restart, random start." in text


def test_a_run_of_several_cells_and_a_seed_without_a_number_are_not_repeated(tmp_path: Path) -> None:
    table = build_table("6", scale_of("quick", max_width=8))
    missing = "transfer_lenet_mnist_admm_w8_to_w1_seed1"
    fake.fill(tmp_path, table, without=lambda job: job.name == missing)
    lines = [validation("retrain", step, 0.5, selected=True) for step in range(6)]
    for seed in (0, 1):
        write_metrics(tmp_path, f"lenet_mnist_admm_w8_to_w1_seed{seed}", lines)
    found = late_epochs(collect(table, tmp_path), tmp_path)
    assert [(run.row, run.column, run.seed) for run in found] == [("images of w=4", "8 to 1", 0)]
