"""However a run is interrupted, and on however many devices it goes on, it ends as if nothing had happened."""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from tiny import Watched

from rap_jax._runtime.interrupt import Interrupted
from rap_jax.config import STAGES, Stage
from rap_jax.training import pipeline
from rap_jax.training.task import StageResult

SEED = 20191027
# Two numbers of devices add up in another order. What that rounding becomes in 9 steps of PGD (whose sign turns
# rounding into whole steps of a pixel) and Adam was 4e-6 at most for four seeds; one step of training moves weights by
# 2e-2, so another batch, another mean or another random number would be 100 times above this.
TOLERANCE = 1e-4


def copy_unfinished(finished: Watched, folder: Path, missing: Sequence[Stage] = STAGES) -> None:
    """Copies a run to before its results, and without those of the stages that are `missing`."""
    shutil.copytree(finished.folder, folder)
    for name in ("results.json", "report.md", *(f"stages/{stage}.json" for stage in (*missing, "test"))):
        (folder / name).unlink()


def assert_ended_alike(folder: Path, finished: Watched, *, same_order: bool = True) -> None:
    assert tiny.digests_of(folder) == tiny.digests_of(finished.folder)
    results = json.loads((folder / "results.json").read_text())
    assert tiny.without_time_and_place(results) == tiny.without_time_and_place(finished.results)
    actual, expected = (tiny.metrics_of(path) for path in (folder, finished.folder))
    order = (lambda m: 0) if same_order else (lambda m: (STAGES.index(m["stage"]), m["step"]))
    assert sorted(actual, key=order) == sorted(expected, key=order)
    assert (folder / "report.md").exists()


def has_logged(folder: Path, stage: Stage, step: int) -> bool:
    path = folder / "metrics.jsonl"
    return path.exists() and f'"kind": "train", "stage": "{stage}", "step": {step},' in path.read_text()


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def end(process: subprocess.Popen[str], number: int) -> str:
    """Sends a signal, and returns what was written to standard error once the process is gone."""
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


@pytest.mark.nightly
def test_kills_at_random_moments_change_nothing(tmp_path: Path, finished: Watched) -> None:
    generator = random.Random(SEED)
    folder = tmp_path / "run"
    for stage in STAGES:
        step, delay = generator.randint(1, tiny.STEPS - 2), generator.uniform(0, 0.1)
        print(f"seed {SEED}: SIGKILL in {stage}, {delay:.3f} s after step {step}")
        process = tiny.start_command(folder)
        wait_until(process, lambda stage=stage, step=step: has_logged(folder, stage, step))
        time.sleep(delay)
        end(process, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not (folder / "results.json").exists()
    watched = tiny.run_and_watch(folder)
    print(f"the last call began at {watched.began}")
    assert watched.began["retrain"] > 0
    assert_ended_alike(folder, finished)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path, finished: Watched) -> None:
    folder = tmp_path / "run"
    copy_unfinished(finished, folder, ["retrain"])
    shutil.rmtree(folder / "checkpoints" / "retrain")
    lines = [json.dumps(m) for m in tiny.metrics_of(folder) if m["stage"] != "retrain"]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    # Checkpoints are seldom, so that it is the signal that saves. It comes while the first step is being compiled.
    process = tiny.start_command(folder, "--checkpoint_every_seconds=1000")
    wait_until(process, (folder / "checkpoints" / "retrain").exists)
    errors = end(process, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in errors
    (saved,) = [int(path.name) for path in (folder / "checkpoints" / "retrain").iterdir()]
    assert 1 <= saved < tiny.STEPS and tiny.metrics_of(folder)[-1]["step"] == saved
    message = f"The run was stopped by SIGTERM in retrain after step {saved} of 9. Run the same command to go on."
    assert errors.splitlines()[-1] == message
    process = tiny.start_command(folder)
    table, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert f"{finished.results['test']['robust_accuracy']:.2%}" in table
    assert_ended_alike(folder, finished)


def test_signal_during_an_evaluation_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Watched
) -> None:
    folder = tmp_path / "run"
    copy_unfinished(finished, folder)
    put_split = pipeline.put_split
    arrived: list[int] = []

    def put(images: np.ndarray, labels: np.ndarray, mesh: Any) -> Any:
        if not arrived:
            arrived.append(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return put_split(images, labels, mesh)

    monkeypatch.setattr(pipeline, "put_split", put)
    with pytest.raises(Interrupted, match=r"SIGTERM while evaluating \(tiny pretrain validation\)"):
        tiny.run_and_watch(folder)
    assert not (folder / "results.json").exists() and not list((folder / "stages").iterdir())


def test_a_stage_begins_again_without_its_checkpoints(tmp_path: Path, finished: Watched) -> None:
    folder = tmp_path / "run"
    copy_unfinished(finished, folder, ["admm", "retrain"])
    for stage in ("admm", "retrain"):
        shutil.rmtree(folder / "checkpoints" / stage)
    watched = tiny.run_and_watch(folder)
    assert watched.began == {"pretrain": tiny.STEPS, "admm": 0, "retrain": 0}
    assert_ended_alike(folder, finished, same_order=False)


def test_damaged_checkpoints_give_way_to_those_before(tmp_path: Path, finished: Watched) -> None:
    folder = tmp_path / "run"
    copy_unfinished(finished, folder)
    for stage in STAGES:
        newest = folder / "checkpoints" / stage / str(tiny.STEPS)
        path = max((newest / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    watched = tiny.run_and_watch(folder)
    assert watched.began == dict.fromkeys(STAGES, tiny.STEPS - 1)
    assert all(list((folder / "checkpoints" / stage / "damaged").iterdir()) for stage in STAGES)
    assert_ended_alike(folder, finished, same_order=False)


def assert_close(result: StageResult, expected: StageResult) -> None:
    assert result.step == expected.step
    compare = lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE)
    jax.tree.map(compare, result.weights, expected.weights)


def test_one_device_gives_what_eight_give(tmp_path: Path, finished: Watched) -> None:
    watched = tiny.run_and_watch(tmp_path / "run", output=tiny.AS_USUAL, devices=jax.devices()[:1])
    assert watched.results["device"].startswith("1 x") and finished.results["device"].startswith("8 x")
    for stage in STAGES:
        assert_close(watched.outcomes[stage], finished.outcomes[stage])


def test_a_run_on_eight_devices_goes_on_on_one(tmp_path: Path, finished: Watched) -> None:
    folder = tmp_path / "run"
    copy_unfinished(finished, folder)
    for stage in ("admm", "retrain"):
        shutil.rmtree(folder / "checkpoints" / stage / str(tiny.STEPS))
    watched = tiny.run_and_watch(folder, devices=jax.devices()[:1])
    assert watched.began == {"pretrain": tiny.STEPS, "admm": tiny.STEPS - 1, "retrain": tiny.STEPS - 1}
    for stage in STAGES:
        assert_close(watched.outcomes[stage], finished.outcomes[stage])
