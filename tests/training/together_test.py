"""Runs of several seeds in one process end as each does alone, whatever interrupts or fails."""

import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from rap_jax._runtime.interrupt import Interrupted
from rap_jax._runtime.mesh import make_mesh
from rap_jax.config import ComputeConfig, PruneConfig, RunConfig, StageConfig
from rap_jax.models.model import Weights
from rap_jax.pruning.projections import Irregular
from rap_jax.training import pipeline, together
from rap_jax.training import stage as stage_lib
from rap_jax.training.loop import Step, train_steps
from rap_jax.training.pipeline import OneRun
from rap_jax.training.seeds import format_seeds_table, run_seeds
from rap_jax.training.task import Reached, StageTask, Training

# Few weights of fc2 stay, so each seed has other outputs of fc1 that nobody reads, and its retrain another shape.
CONFIG = tiny.tiny_config(prune=PruneConfig("irregular", (("fc2", 0.9), ("*", 0.5)), rho=0.1))
PRETRAIN_ALONE = dataclasses.replace(CONFIG, admm=StageConfig(0), retrain=StageConfig(0))
Results = tuple[dict[int, dict[str, Any]], dict[int, ValueError]]


def of_seed(seed: int, config: RunConfig = CONFIG) -> RunConfig:
    return dataclasses.replace(config, seed=seed)


def run_alone(folder: Path, seed: int, config: RunConfig = CONFIG) -> dict[str, Any]:
    given: dict[str, Any] = {"output": tiny.EVERY_LINE, "devices": jax.devices()[:1]}
    return pipeline.run(of_seed(seed, config), tiny.tiny_dataset(), folder / f"alone{seed}", **given)


def run_both(folder: Path, config: RunConfig = CONFIG) -> Results:
    data = tiny.tiny_dataset()
    runs = [OneRun(of_seed(seed, config), data, folder / f"seed{seed}") for seed in (1, 2)]
    return run_seeds(runs, output=tiny.EVERY_LINE, devices=jax.devices()[:2])


def last_digests(folder: Path) -> dict[str, str]:
    """The sha256 of the last state of each stage."""
    found = sorted(folder.glob("checkpoints/*/[0-9]*/meta/metadata"), key=lambda path: int(path.parents[1].name))
    return {path.parents[2].name: json.loads(path.read_text())["sha256"] for path in found}


def assert_as_alone(folder: Path, seed: int, results: dict[str, Any], alone: dict[str, Any]) -> None:
    ours, theirs = folder / f"seed{seed}", folder / f"alone{seed}"
    assert last_digests(ours) == last_digests(theirs) != {}
    assert tiny.metrics_of(ours) == tiny.metrics_of(theirs)
    assert tiny.without_time_and_place(results) == tiny.without_time_and_place(alone)
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}


@pytest.mark.e2e
def test_all_stages_have_the_bits_of_each_seed_alone(tmp_path: Path) -> None:
    done, failed = run_both(tmp_path)
    assert not failed
    for seed in (1, 2):
        assert_as_alone(tmp_path, seed, done[seed], run_alone(tmp_path, seed))
    metas = [(tmp_path / f"seed{seed}/checkpoints/retrain/9/meta/metadata").read_text() for seed in (1, 2)]
    assert json.loads(metas[0])["layout"] != json.loads(metas[1])["layout"]
    again, _ = run_both(tmp_path)
    assert again == done


def with_signal(stop: int) -> Any:
    def steps(*arguments: Any) -> Iterator[Step]:
        for step in train_steps(*arguments):
            if step.number == stop:
                signal.raise_signal(signal.SIGTERM)
            yield step

    return steps


@pytest.mark.e2e
def test_runs_at_different_steps_and_a_signal_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {seed: run_alone(tmp_path, seed, PRETRAIN_ALONE) for seed in (1, 2)}
    with monkeypatch.context() as patch:  # seed 1 is begun alone
        patch.setattr(stage_lib, "train_steps", with_signal(4))
        with pytest.raises(Interrupted):
            pipeline.run(of_seed(1, PRETRAIN_ALONE), tiny.tiny_dataset(), tmp_path / "seed1", output=tiny.EVERY_LINE)
    with monkeypatch.context() as patch:  # seed 2 catches up, then both go on to step 7
        patch.setattr(together, "train_steps", with_signal(7))
        with pytest.raises(Interrupted, match="SIGTERM in pretrain after step 7 of 9"):
            run_both(tmp_path, PRETRAIN_ALONE)
    saved = {seed: sorted((tmp_path / f"seed{seed}/checkpoints/pretrain").iterdir())[-1].name for seed in (1, 2)}
    assert saved == {1: "7", 2: "7"}
    done, _ = run_both(tmp_path, PRETRAIN_ALONE)
    # Seed 1 had eight devices at first, which changes rounding.
    assert_as_alone(tmp_path, 2, done[2], expected[2])
    assert [m["step"] for m in tiny.metrics_of(tmp_path / "seed1") if m["kind"] == "train"] == list(range(1, 10))


@pytest.mark.e2e
def test_a_seed_that_fails_is_named_and_the_other_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_start = pipeline.make_start

    def start(config: RunConfig, *arguments: Any) -> Any:
        found = make_start(config, *arguments)
        spoilt = jax.tree.map(lambda w: w * (np.nan if config.seed == 2 else 1), found.weights.params)
        return found._replace(weights=found.weights._replace(params=spoilt))

    monkeypatch.setattr(pipeline, "make_start", start)
    for _ in range(2):
        done, failed = run_both(tmp_path, PRETRAIN_ALONE)
        assert list(done) == [1] and list(failed) == [2]
        assert "Loss is nan" in str(failed[2]) and f"{tmp_path}/seed2" in str(failed[2])
    assert_as_alone(tmp_path, 1, done[1], run_alone(tmp_path, 1, PRETRAIN_ALONE))
    monkeypatch.undo()
    done, failed = run_both(tmp_path, PRETRAIN_ALONE)  # its folder is whole, and not locked
    assert not failed
    assert_as_alone(tmp_path, 2, done[2], run_alone(tmp_path, 2, PRETRAIN_ALONE))


def test_bad_settings_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    one, data = OneRun(of_seed(1), tiny.tiny_dataset(), tmp_path / "one"), tiny.tiny_dataset()
    other = lambda **changes: [one, OneRun(dataclasses.replace(CONFIG, **changes), data, tmp_path / "two")]
    for runs, compute, message in (
        ([], ComputeConfig(), "number of seeds is 0"),
        (other(seed=1), ComputeConfig(), r"seeds is \['1', '1'\]; expected another seed for each run"),
        ([one, one._replace(config=of_seed(2))], ComputeConfig(), "expected another folder for each run"),
        (other(seed=2, batch_size=24), ComputeConfig(), "expected runs that differ by seed, name and start alone"),
        ([one], ComputeConfig(num_model_shards=2), "num_model_shards is 2; expected 1"),
        ([one], ComputeConfig(stream_data=True), "stream_data is True; expected False"),
    ):
        with pytest.raises(ValueError, match=message):
            run_seeds(runs, compute=compute)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_refused_before_any_other_is_begun(tmp_path: Path) -> None:
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1" / "notes.txt").write_text("not a run")
    data = tiny.tiny_dataset()
    runs = [OneRun(of_seed(seed), data, tmp_path / f"seed{seed}") for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"Seed 1: Run folder .*seed1 holds notes.txt but no config.json"):
        run_seeds(runs)
    assert not (tmp_path / "seed0").exists() and [p.name for p in (tmp_path / "seed1").iterdir()] == ["notes.txt"]


def task(stage: str, step: int, width: int = 1, num_steps: int = 9, sparsity: float = 0.5) -> StageTask:
    weights = Weights({"w": np.zeros((width,))}, {})
    plan: Any = SimpleNamespace(stage=stage, num_steps=num_steps)
    context: Any = SimpleNamespace(specs={"w": Irregular(sparsity)})
    state: Any = None
    return StageTask(plan, context, weights, None, Reached(step, state, 0.0), context)


def test_runs_of_the_earliest_stage_train_first(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = list[tuple[str, int]]()

    def train_tasks(tasks: Any, mesh: Any) -> list[Any]:
        trained.extend((each.plan.stage, each.reached.step) for each in tasks)
        return [ValueError("NaN") if each.reached.step == 3 else each.reached for each in tasks]

    def run(*tasks: StageTask) -> Training[int]:
        for each in tasks:  # noqa: UP028
            yield each  # a tuple is sent nothing
        return len(tasks)

    monkeypatch.setattr(together, "train_tasks", train_tasks)
    runs = {
        5: run(task("admm", 1), task("retrain", 1)),
        6: run(task("pretrain", 2), task("admm", 2)),
        7: run(task("pretrain", 3), task("admm", 3)),
        8: run(),
    }
    done, failed = together.run_together(runs, make_mesh(jax.devices()[:1]))
    assert done == {5: 2, 6: 2, 8: 0} and str(failed[7]) == "NaN"
    assert trained == [("pretrain", 2), ("pretrain", 3), ("admm", 1), ("admm", 2), ("retrain", 1)]


def test_a_run_that_cannot_begin_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> Training[int]:
        raise ValueError("another run")
        yield task("pretrain", 0)

    def fine() -> Training[int]:
        yield task("pretrain", 0)
        return 1

    monkeypatch.setattr(together, "train_tasks", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match="Seed 2: another run"):
        together.run_together({1: fine(), 2: refused()}, make_mesh(jax.devices()[:1]))


def test_those_behind_catch_up_in_groups_of_equal_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[tuple[int, list[int], set[int]]]()

    def train_until(until: int, tasks: Any, parts: Any, mesh: Any) -> list[Any]:
        calls.append((until, [each.reached.step for each in tasks], {len(each.start.params["w"]) for each in tasks}))
        return [each.reached._replace(step=until) for each in tasks]

    parts = SimpleNamespace(init=lambda *_: None, shardings=None)
    monkeypatch.setattr(together, "stage_parts", lambda *_: parts)
    monkeypatch.setattr(together, "_train_until", train_until)
    tasks = [task("admm", 4), task("admm", 0), task("admm", 4), task("admm", 6), task("admm", 5, width=2)]
    found = together.train_tasks(tasks, make_mesh(jax.devices()[:1]))
    assert [each.step for each in found if isinstance(each, Reached)] == [9] * 5
    assert calls == [(4, [0], {1}), (6, [4, 4, 4], {1}), (9, [6, 6, 6, 6], {1}), (9, [5], {2})]


def test_other_sparsity_sets_are_another_program_in_admm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = list[list[float]]()

    def train_group(tasks: Any, mesh: Any) -> list[Any]:
        groups.append([each.context.specs["w"].sparsity for each in tasks])
        return [each.reached for each in tasks]

    monkeypatch.setattr(together, "_train_group", train_group)
    for stage in ("admm", "retrain"):
        tasks = [task(stage, step, sparsity=share) for step, share in enumerate((0.5, 0.9, 0.5))]
        found = together.train_tasks(tasks, make_mesh(jax.devices()[:1]))
        assert [each.step for each in found if isinstance(each, Reached)] == [0, 1, 2]
    assert groups == [[0.5, 0.5], [0.9], [0.5, 0.9, 0.5]]


def test_table_of_seeds() -> None:
    def result(natural: float) -> dict[str, Any]:
        test = {"natural_accuracy": natural, "robust_accuracy": 0.5}
        return {"test": test, "sparsity": {"overall": {"sparsity": 0.25}}, "run_dir": "here"}

    table = format_seeds_table({3: result(0.9), 4: result(0.8)})
    mean, spread = table.splitlines()[-2:]
    assert "85.00%" in mean and "50.00%" in mean and "7.07%" in spread and "0.00%" in spread
    assert "spread" not in format_seeds_table({3: result(0.9)})
