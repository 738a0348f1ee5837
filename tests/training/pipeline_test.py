"""A run gives what it promises, keeps the right model, prunes what was asked for, and refuses what cannot work."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from tiny import Watched

from rap_jax._runtime.integrity import read_checked
from rap_jax.config import STAGES, AugmentConfig, OptimizerConfig, PruneConfig, StageConfig, TrainConfig
from rap_jax.evaluation.accuracy import Accuracy
from rap_jax.training import pipeline
from rap_jax.training import stage as stage_lib

CONFIG = tiny.tiny_config()


def assert_same(actual: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def check_accuracy(found: dict[str, Any], num_examples: int) -> None:
    for kind in ("natural", "robust"):
        low, high = found[f"{kind}_interval"]
        assert 0 <= low <= found[f"{kind}_accuracy"] <= high <= 1 and high - low > 0.05
    assert found["robust_accuracy"] <= found["natural_accuracy"]
    assert found["num_examples"] == num_examples
    assert found["attack"] == dataclasses.asdict(CONFIG.report_attack)


@pytest.mark.e2e
def test_results_have_everything(finished: Watched) -> None:
    results = finished.results
    assert results == read_checked((finished.folder / "results.json").read_text())
    assert (results["dataset"], results["seed"], results["name"]) == ("tiny", 1, "tiny")
    assert results["data"] == json.loads(json.dumps(tiny.tiny_dataset().describe()))
    assert results["data"]["num_images"] == {"train": 240, "validation": 40, "test": 60}
    assert results["start"] == {"weights": "random"}
    assert results["model"] == dataclasses.asdict(CONFIG.model) | {"num_params": 1994}
    assert results["config"] == json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert results["command"] == "tiny --seed=1" and results["run_dir"] == str(finished.folder)
    assert results["device"] == "8 x cpu (cpu)"
    assert results["versions"]["jax"] == jax.__version__ and {"python", "rap-jax"} <= set(results["versions"])
    check_accuracy(results["test"], 60)
    for stage in STAGES:
        check_accuracy(results["stages"][stage]["validation"], 40)
        assert set(results["stages"][stage]["sparsity"]) == {"layers", "overall"}
        assert results["seconds"][stage] == results["stages"][stage]["seconds"] > 0
    check_accuracy(results["stages"]["pretrain"]["cut"], 40)
    check_accuracy(results["stages"]["admm"]["cut"], 40)
    seconds = results["seconds"]
    assert set(seconds) == {*STAGES, "validation", "test", "total"} and min(seconds.values()) > 0
    assert seconds["total"] == pytest.approx(sum(seconds[part] for part in (*STAGES, "validation", "test")))


@pytest.mark.e2e
def test_folder_holds_config_metrics_and_report(finished: Watched) -> None:
    config = json.loads((finished.folder / "config.json").read_text())
    assert config["seed"] == 1 and config["data"]["name"] == "tiny" and "data_dir" not in config["data"]
    assert (finished.folder / "run.flags").read_text() == "--seed=1\n"
    report = (finished.folder / "report.md").read_text()
    assert "tiny --seed=1" in report and f"{finished.results['test']['robust_accuracy']:.2%}" in report
    metrics = tiny.metrics_of(finished.folder)
    for stage in STAGES:
        steps = [m["step"] for m in metrics if (m["kind"], m["stage"]) == ("validation", stage)]
        assert steps == [3, 6, 9]
        last = [m for m in metrics if (m["kind"], m["stage"]) == ("train", stage)][-1]
        assert last["step"] == 9 and last["epoch"] == 3.0 and last["epsilon"] == pytest.approx(0.1)
    # Dual steps come every 2 steps; each is seen after the step that took it, the start and the end as well.
    admm = [(m["step"], m["layer"]) for m in metrics if m["kind"] == "admm"]
    assert admm == [(n, f"{layer}/kernel") for n in (0, 3, 5, 7, 9) for layer in ("conv1", "conv2", "fc1")]


@pytest.mark.e2e
def test_final_sparsity_is_what_was_asked_for(finished: Watched) -> None:
    params = finished.outcomes["retrain"].weights.params
    kept = {}
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        kernel, bias = params[layer]["kernel"], params[layer]["bias"]
        alive = (kernel != 0).reshape(-1, kernel.shape[-1])
        kept[layer] = (int(alive.any(0).sum()), kernel.shape[-1])
        assert alive[:, alive.any(0)].all()  # whole filters went, and nothing else
        assert (bias[~alive.any(0)] == 0).all()
        counted = finished.results["sparsity"]["layers"][f"{layer}/kernel"]
        assert (counted["filters_kept"], counted["filters"]) == kept[layer]
        assert counted["zeros"] == int((kernel == 0).sum()) == round(counted["sparsity"] * kernel.size)
    assert kept == {"conv1": (1, 2), "conv2": (2, 4), "fc1": (16, 64), "fc2": (10, 10)}
    # 25 of 50, 100 of 200 and 768 of 1024 weights are gone, 640 stay.
    assert finished.results["sparsity"]["overall"] == {
        "size": 1914, "zeros": 893, "sparsity": 893 / 1914, "leftovers": 0,
    }  # fmt: skip
    assert finished.results["stages"]["retrain"]["sparsity"] == finished.results["sparsity"]
    assert finished.results["stages"]["admm"]["sparsity"]["overall"]["zeros"] == 0


@pytest.mark.e2e
def test_single_weights_stay_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Unlike a filter that is gone, whose gradient is zero, these weights would grow again if nothing held them.
    monkeypatch.setattr(pipeline, "make_evaluator", lambda _, attack, *a, **b: lambda *c: Accuracy(5, 5, 10, attack))
    prune = PruneConfig(structure="irregular", sparsity=(("fc2", 0.3), ("*", 0.75)))
    retrained = tiny.run_and_watch(tmp_path / "run", dataclasses.replace(CONFIG, prune=prune)).outcomes["retrain"]
    assert retrained.step == 3
    zeros = {layer: int((arrays["kernel"] == 0).sum()) for layer, arrays in retrained.weights.params.items()}
    assert zeros == {"conv1": 38, "conv2": 150, "fc1": 768, "fc2": 192}  # 37.5 is rounded up


@pytest.mark.e2e
def test_stages_hand_over(finished: Watched) -> None:
    starts, outcomes = finished.starts, finished.outcomes
    assert_same(starts["admm"], outcomes["pretrain"].weights)
    pulled = outcomes["admm"].weights.params
    for layer, arrays in starts["retrain"].params.items():
        for name, values in arrays.items():
            assert_same(values[values != 0], pulled[layer][name][values != 0])
        final = outcomes["retrain"].weights.params[layer]["kernel"]
        np.testing.assert_array_equal(final == 0, arrays["kernel"] == 0)
        assert (final != arrays["kernel"]).any()
    assert [outcomes[stage].step for stage in STAGES] == [finished.results["stages"][s]["step"] for s in STAGES]


@pytest.mark.e2e
def test_kept_model_is_the_one_of_the_best_score(finished: Watched) -> None:
    lines = [m for m in tiny.metrics_of(finished.folder) if m["kind"] == "validation"]
    for stage in STAGES:
        own = [m for m in lines if m["stage"] == stage]
        scores = [(m["natural_accuracy"] + m["robust_accuracy"]) / 2 for m in own]
        selected = [m["step"] for m in own if m["selected"]]
        best = own[scores.index(max(scores))]["step"]
        assert finished.outcomes[stage].step == (9 if stage == "admm" else best)
        assert selected == ([] if stage == "admm" else [m["step"] for m in own if m["step"] in selected])
        assert stage == "admm" or selected[-1] == best
    assert finished.outcomes["retrain"].step == 3  # or this test would not tell the best from the last


def forbid(patch: pytest.MonkeyPatch, *names: str) -> None:
    def forbidden(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("this was not to be called")

    for name in names:
        patch.setattr(pipeline if hasattr(pipeline, name) else stage_lib, name, forbidden)


@pytest.fixture
def again(finished: Watched, tmp_path: Path) -> Path:
    """A copy of the finished run, to be run again."""
    return Path(shutil.copytree(finished.folder, tmp_path / "again"))


@pytest.mark.e2e
def test_a_finished_run_returns_its_results_and_reads_no_test_set(
    finished: Watched, again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "run_stage", "make_evaluator", "put_split")
    before = {path: path.stat().st_mtime_ns for path in again.rglob("[!.]*")}
    dataset = dataclasses.replace(tiny.tiny_dataset(), test=None)  # type: ignore[arg-type]
    assert pipeline.run(CONFIG, dataset, again) == finished.results
    assert before == {path: path.stat().st_mtime_ns for path in again.rglob("[!.]*")}
    (again / "report.md").unlink()  # as after a kill between the results and the report
    assert pipeline.run(CONFIG, dataset, again) == finished.results
    assert (again / "report.md").exists()


@pytest.mark.e2e
def test_only_what_is_missing_is_done(finished: Watched, again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("results.json", "stages/test.json"):
        (again / name).unlink()
    evaluated: list[str] = []
    judge = pipeline.SplitEvaluator.__call__
    monkeypatch.setattr(pipeline.SplitEvaluator, "__call__", lambda *a: (evaluated.append(a[1]), judge(*a))[1])
    monkeypatch.setattr(stage_lib, "train_stage", lambda *_: pytest.fail("trained again"))
    results = pipeline.run(CONFIG, tiny.tiny_dataset(), again)
    assert evaluated == ["tiny test"]
    assert tiny.without_time_and_place(results) == tiny.without_time_and_place(finished.results)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "batch_size is 12; expected a multiple of the 8 devices"),
        ({"batch_size": 248}, "batch_size is 248; expected at most the 240 images"),
        ({"prune": PruneConfig(sparsity=(("conv9", 0.5),))}, "pattern 'conv9' matches no layer; the layers are conv1"),
        ({"prune": PruneConfig(sparsity=(("fc?", 0.5),))}, "matches the output layer 'fc2'"),
        (
            {"prune": PruneConfig(dual_interval=3.0)},
            r"dual_interval is 3\.0; expected less than the ADMM stage's 3 epochs",
        ),
        ({"retrain": StageConfig(2, OptimizerConfig(warmup_epochs=2.0))}, r"warmup_epochs is 2\.0, 6 steps"),
        ({"admm": StageConfig(2, epsilon_ramp_epochs=2.0)}, r"epsilon_ramp_epochs is 2\.0; expected less than the 2"),
        (
            {"train": TrainConfig(None, augment=AugmentConfig(crop_padding=8))},
            "crop_padding is 8; expected fewer pixels than the smaller side of the images, 8",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    forbid(monkeypatch, "run_stage", "open_run_folder")
    with pytest.raises(ValueError, match=message):
        pipeline.run(dataclasses.replace(CONFIG, **changes), tiny.tiny_dataset(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
