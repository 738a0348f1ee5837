"""The results of a table: how accuracies, late epochs, signs of weak attacks and settings are read from its jobs."""

import json
from pathlib import Path
from typing import Any

import fake_results as fake
import pytest
from fake_results import FINDING, QUICK, measured_2

from launch.job_configs import config_of
from rap_jax._runtime.integrity import read_checked, write_checked
from rap_jax.reproduction.checks import as_json
from rap_jax.reproduction.job import in_order
from rap_jax.reproduction.recipes import Scale, scale_of, with_paper_settings
from rap_jax.reproduction.report import write_report
from rap_jax.reproduction.results import (
    AttackReliability,
    LateEpochs,
    MeasuredAccuracy,
    SettingDifference,
    TableResults,
    attack_reliability,
    collect,
    late_epochs,
    read_metric,
    setting_differences,
)
from rap_jax.reproduction.tables import build_table

RELIABILITY, WARNING = "Reliability of the attacks", "Square beats the gradients"


def found_accuracy(robust: float) -> dict[str, float]:
    return {"robust_accuracy": robust, "num_examples": 100}


RUN = {"name": "a", "test": {"natural_accuracy": 0.9, "robust_accuracy": 0.8, "num_examples": 1000}}
EVALUATION = {"name": "b", "auto_attack": found_accuracy(0.5), "combined": found_accuracy(0.4),
              "transfer": [found_accuracy(0.7), found_accuracy(0.6)]}  # fmt: skip


def test_each_metric_has_its_number() -> None:
    assert read_metric(RUN, "natural") == MeasuredAccuracy(0.9, 1000)
    assert read_metric(RUN, "robust") == MeasuredAccuracy(0.8, 1000)
    given = {"auto_attack": 0.5, "combined": 0.4, "transfer/0": 0.7, "transfer/1": 0.6}
    assert {name: read_metric(EVALUATION, name) for name in given} == {
        name: MeasuredAccuracy(accuracy, 100) for name, accuracy in given.items()
    }
    # A scale without AutoAttack shows the worst case of its attacks.
    assert read_metric(EVALUATION | {"auto_attack": None}, "auto_attack") == MeasuredAccuracy(0.4, 100)


@pytest.mark.parametrize("metric", ["natural", "combined", "transfer/0", "transfer/2"])
def test_a_metric_that_is_not_there_is_named(metric: str) -> None:
    results = {"name": "c"} if metric != "transfer/2" else EVALUATION
    with pytest.raises(ValueError, match=f"have no {metric} .*move results.json away"):
        read_metric(results, metric)


def test_what_square_breaks_is_counted_from_the_components(tmp_path: Path) -> None:
    found = attack_reliability(measured_2(tmp_path))
    # 2 to 1 with three seeds, 4 to 2 with two; natural and PGD accuracy come from runs, which have no components.
    places = [("to 1", 0), ("to 1", 1), ("to 1", 2), ("to 2", 0), ("to 2", 2)]
    assert [(each.column, each.seed) for each in found] == places
    # 1,000 images: 86.5% withstand all in the second seed, and 12 more all but Square.
    numbers = tuple(pytest.approx(percent) for percent in (87.7, 1.2, 86.5))
    assert found[1] == AttackReliability("w=2", "to 1", 1, *numbers, {WARNING: FINDING})  # type: ignore[arg-type]


def test_both_reports_show_the_reliability(tmp_path: Path) -> None:
    folder = write_report(measured_2(tmp_path), tmp_path, {}, {})
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert RELIABILITY in text and f"{WARNING}: w=2, to 1, seed 0: {FINDING}" in text and "87.70" in text


def test_findings_without_auto_attack_are_shown_and_nothing_else(tmp_path: Path) -> None:
    table = build_table("C1", QUICK)
    fake.fill(tmp_path, table)
    assert attack_reliability(collect(table, tmp_path)) == ()
    assert RELIABILITY not in (write_report(collect(table, tmp_path), tmp_path, {}, {}) / "report.md").read_text()
    path = tmp_path / "evaluations" / "cw_lenet_mnist_admm_w4_to_w2_seed1" / "results.json"
    finding = {"name": "few classes", "text": "all are eights"}
    path.write_text(write_checked(read_checked(path.read_text()) | {"findings": [finding]}))
    (each,) = attack_reliability(collect(table, tmp_path))
    assert each == AttackReliability("w=4", "to 2", 1, None, None, None, {"few classes": "all are eights"})


def settings(out: Path, name: str, scale: Scale) -> dict[str, SettingDifference]:
    """The differences of a table of which the first seed is done, by the name of the setting."""
    table = build_table(name, scale)
    fake.fill(out, table, without=lambda job: fake.seed_of(job) > 0)
    found = collect(table, out)
    jobs = in_order(build_table(name, with_paper_settings(scale)).jobs)
    paper = {job.name: as_json(config_of(job)) for job in jobs if job.name in found.results}
    return {difference.name: difference for difference in setting_differences(found, paper)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2", {"prune.dual_keeps_graph"}),  # u is a constant of the penalty here
        ("4", {"prune.dual_keeps_graph", "train.attack_batch_norm"}),
        ("figure1", {"train.attack_batch_norm"}),  # nothing is pruned there
        ("6", {"prune.dual_keeps_graph"}),
        ("B1", set()),
    ],
)
def test_the_recipes_of_the_paper_have_its_settings(tmp_path: Path, name: str, expected: set[str]) -> None:
    assert set(settings(tmp_path, name, scale_of("paper", num_seeds=1, max_width=4))) == expected


def test_the_small_scale_says_what_is_small(tmp_path: Path) -> None:
    rows = settings(tmp_path, "2", scale_of("quick", num_seeds=1, max_width=2))
    assert rows["batch_size"] == SettingDifference("batch_size", ("128",), "64")
    assert rows["pretrain.num_epochs"][1:] == (("6",), "83")
    assert rows["retrain.num_epochs"][1:] == (("18",), "83")
    assert rows["admm.optimizer.schedule"][1:] == (("cosine",), "constant")
    assert rows["train.attack.step_size"][1:] == (("0.075",), "0.01")
    assert rows["pretrain.epsilon_ramp_epochs"][1:] == (("2",), "0")
    assert rows["prune.rho_rule"][1:] == (("gradient",), "uniform")
    assert rows["prune.rescale_dual"][1:] == (("yes",), "no")
    assert not [name for name in rows if name.startswith("report_attack")], "it is the paper's"


def test_a_changed_flag_shows(tmp_path: Path) -> None:
    flags = ("--batch_size=32", "--label_smoothing=0.1", "--dual_interval_unit=steps", "--report_num_steps=7",
             "--dual_keeps_graph")  # fmt: skip
    rows = settings(tmp_path, "2", scale_of("paper", num_seeds=1, max_width=2, mnist_flags=flags))
    here = {name: row.here for name, row in rows.items()}
    assert here == {"batch_size": ("32",), "train.label_smoothing": ("0.1",), "prune.dual_interval_unit": ("steps",),
                    "report_attack.num_steps": ("7",)}  # fmt: skip


def test_runs_that_differ_are_both_named(tmp_path: Path) -> None:
    rows = settings(tmp_path, "5", scale_of("quick", num_seeds=1, max_width=2))
    assert rows["retrain.num_epochs"][1:] == (("18", "30"), "83")
    assert {name for name in rows if "ramp" in name} == {
        f"{stage}.epsilon_ramp_epochs" for stage in ("pretrain", "retrain")
    }


def test_an_evaluation_with_another_attack_and_other_data_show(tmp_path: Path) -> None:
    scale = scale_of("paper", num_seeds=1, max_width=4)
    table = build_table("C1", scale)
    settings(tmp_path, "C1", scale)
    job = next(job for job in table.jobs if job.name.startswith("cw"))
    written = {each.name: as_json(config_of(each)) for each in (job, job.needs[0])}
    fake.write(tmp_path, job, job.results(tmp_path) | {"config": written[job.name] | {"pgd_num_steps": 9}})  # type: ignore[operator]
    fake.write(tmp_path, job.needs[0], job.needs[0].results(tmp_path) | {"dataset": "mnist_5k"})  # type: ignore[operator]
    rows = setting_differences(collect(table, tmp_path), written)
    assert {row.name: row[1:] for row in rows if "dual" not in row.name} == {
        "pgd_num_steps": (("9",), "40"), "data.dataset": (("mnist_5k",), "mnist"),
    }  # fmt: skip


def test_nothing_differs_before_the_first_run(tmp_path: Path) -> None:
    assert setting_differences(collect(build_table("2", QUICK), tmp_path), {}) == ()


def validation(stage: str, step: int, robust: float, *, selected: bool = False) -> dict[str, Any]:
    return {
        "kind": "validation", "stage": stage, "step": step, "epoch": step / 10, "natural_accuracy": 0.97,
        "robust_accuracy": robust, "selected": selected,
    }  # fmt: skip


def write_metrics(out: Path, name: str, lines: list[dict[str, Any]], torn: str = "") -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "runs" / name / "metrics.jsonl").write_text(text + torn)


def measured(out: Path) -> TableResults:
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
    assert late_epochs(found, tmp_path) == (LateEpochs("w=4", "to 2", 1, 7, 90.0, (86.0, 83.0, 85.0)),)


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
    assert late_epochs(found, tmp_path) == (LateEpochs("w=4", "to 1", 0, 4, 60.0, (80.0, 60.0)),)


def test_both_reports_show_it_and_only_where_there_is_something(tmp_path: Path) -> None:
    found = measured(tmp_path)
    title, folder = "How far late epochs lie apart", write_report(found, tmp_path, {}, {})
    assert title not in (folder / "report.md").read_text() + (folder / "report.html").read_text()
    lines = [validation("pretrain", step, robust, selected=True) for step, robust in enumerate((0.1, 0.5, 0.432))]
    write_metrics(tmp_path, "lenet_mnist_dense_w4_seed2", [*lines, validation("pretrain", 4, 0.4)])
    write_report(found, tmp_path, {}, {})
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert title in text and "40.00 to 43.20" in text and "41.60" in text
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
