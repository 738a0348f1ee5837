"""Several processes that compute as one end with the weights of one process; they agree, stop and go on together."""

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from normed_net import add_normed_net

from rap_jax.config import ProcessConfig
from rap_jax.runs.network import load_network

SECONDS = 300
SELDOM = "--checkpoint_every_seconds=1000"  # at the end of a stage and after a signal, which takes less time
WIDE = "--width=4"  # wide enough that some arrays are cut into pieces
# Without what makes much of rounding: steps of a sign, in the attack and for a gradient that is nearly zero in Adam.
NORMED = (
    *(SELDOM, "--model=normed_net", "--sparsity=conv2:0.5", "--norm=l2", "--epsilon=1"),
    *("--train_step_size=0.5", "--select_step_size=0.5", "--report_step_size=0.5"),
    *(f"--{stage}_optimizer=sgd" for stage in tiny.STAGES),
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by one process with one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish([tiny.start_command(folder, WIDE, SELDOM, num_devices=1)])
    return folder


def finish(processes: Sequence[subprocess.Popen[str]], expected: int = 0) -> list[str]:
    """What they wrote to stderr, once all have ended."""
    ended = [process.communicate(timeout=SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [expected] * len(processes), ended
    return [error for _, error in ended]


def assert_same(folder: Path, alone: Path) -> None:
    weights = [load_network(run).weights for run in (folder, alone)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), *weights)
    kinds = ("train", "validation", "admm")
    lines = [[line for line in tiny.metrics_of(run) if line["kind"] in kinds] for run in (folder, alone)]
    assert len(lines[0]) == len(lines[1]) > 0
    for ours, theirs in zip(*lines, strict=True):
        assert ours.keys() == theirs.keys()
        numbers: list[list[Any]] = [
            [line[key] for key in ours if not isinstance(line[key], str)] for line in (ours, theirs)
        ]
        np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-5)
        if "loss" in ours:
            assert abs(ours["loss"] - theirs["loss"]) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_processes_end_with_the_weights_of_one(tmp_path: Path, alone: Path, number: int) -> None:
    finish(tiny.start_processes(tmp_path / "run", number, WIDE, SELDOM))
    assert_same(tmp_path / "run", alone)


@pytest.mark.slow
def test_state_in_pieces_and_data_from_disk_over_processes(tmp_path: Path, alone: Path) -> None:
    finish(tiny.start_processes(tmp_path / "run", 2, WIDE, SELDOM, "--num_model_shards=2", "--stream_data"))
    assert_same(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize("form", [(), ("--attack_batch_norm=batch",)])
def test_statistics_of_batch_norm_are_those_of_the_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]
) -> None:
    add_normed_net(monkeypatch)
    finish([tiny.start_command(tmp_path / "alone", *NORMED, *form, num_devices=1)])
    finish(tiny.start_processes(tmp_path / "run", 2, *NORMED, *form))
    assert jax.tree.leaves(load_network(tmp_path / "run").weights.batch_stats)
    assert_same(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
def test_two_processes_with_several_devices_each(tmp_path: Path, alone: Path) -> None:
    finish(tiny.start_processes(tmp_path / "run", 2, WIDE, SELDOM, "--num_cpu_devices=4", "--num_model_shards=2"))
    assert_same(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_run_goes_on_in_more_processes_each_time(tmp_path: Path, alone: Path) -> None:
    folder = tmp_path / "run"
    for number, stage, shards in ((1, "pretrain", 1), (2, "admm", 2), (4, "", 2)):
        given = (WIDE, SELDOM, f"--num_model_shards={shards}")
        processes = (
            tiny.start_processes(folder, number, *given)
            if number > 1
            else [tiny.start_command(folder, *given, num_devices=1)]
        )
        if stage:
            wait_for(lambda stage=stage: any(line["stage"] == stage for line in tiny.metrics_of(folder)))
            processes[0].send_signal(signal.SIGTERM)
        finish(processes, 128 + signal.SIGTERM if stage else 0)
    assert_same(folder, alone)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_one_process_goes_on(tmp_path: Path, alone: Path) -> None:
    folder = tmp_path / "run"
    processes = tiny.start_processes(folder, 2, WIDE, SELDOM)
    wait_for(lambda: any(line["stage"] == "admm" for line in tiny.metrics_of(folder)))
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes, 128 + signal.SIGTERM)
    assert "stopped by SIGTERM in admm after step" in said[0]
    finish([tiny.start_command(folder, WIDE, SELDOM, num_devices=1)])
    assert_same(folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_is_killed_all_end_and_go_on_together(tmp_path: Path, alone: Path, killed: int) -> None:
    folder = tmp_path / "run"
    processes = tiny.start_processes(folder, 2, WIDE)
    wait_for(lambda: any(line["stage"] == "admm" for line in tiny.metrics_of(folder)))
    processes[killed].kill()
    other = processes[1 - killed]
    _, said = other.communicate(timeout=SECONDS)
    processes[killed].communicate(timeout=SECONDS)
    assert other.returncode not in (0, None)
    # JAX may end a process by itself, with words of its own, once the first one is gone.
    assert "failed in what all of them compute" in said or (killed == 0 and "another task died" in said), said
    finish(tiny.start_processes(folder, 2, WIDE))
    assert_same(folder, alone)


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused_in_all_processes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = tiny.start_command(folder, WIDE, num_devices=1)
    wait_for(lambda: bool(tiny.metrics_of(folder)))
    said = finish(tiny.start_processes(folder, 2, WIDE), 1)
    assert all("is in use by another process" in text for text in said)
    first.terminate()
    first.communicate(timeout=SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--admm_learning_rate=0.03", "admm.optimizer.learning_rate: 0.02 in process 0, 0.03 in process 1"),
        ("--dry_run", "dry_run: False in process 0, True in process 1"),
    ],
)
def test_other_settings_in_one_of_them_are_refused(tmp_path: Path, flag: str, line: str) -> None:
    common = (f"--coordinator_address={tiny.free_address()}", "--num_processes=2")
    own_flags = ("--process_id=0",), ("--process_id=1", flag)
    said = finish([tiny.start_command(tmp_path / "run", *common, *own, num_devices=1) for own in own_flags], 1)
    for text in said:
        assert "Process 1 of 2 was started with other settings than process 0" in text
    assert "  process 1 says which" in said[0]
    assert f"\n  {line}\n" in said[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_that_waits_in_vain_says_so(tmp_path: Path) -> None:
    address = tiny.free_address()
    for number in (0, 1):
        given = (f"--coordinator_address={address}", "--num_processes=2", f"--process_id={number}")
        alone = tiny.start_command(tmp_path / "run", *given, "--initialization_timeout=5", num_devices=1)
        (said,) = finish([alone], 1)
        assert f"Process {number} waits for the 2 processes at {address}, 5 seconds at most." in said
        assert f"error: Process {number} has waited 5 seconds" in said.splitlines()[-1] and "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_forecast_is_printed_by_one_and_leaves_nothing(tmp_path: Path) -> None:
    processes = tiny.start_processes(tmp_path / "run", 2, "--dry_run")
    said = [process.communicate(timeout=SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    (retrain,) = (line.split() for line in said[0][0].splitlines() if line.startswith("| retrain"))
    assert retrain[3:6:2] == ["9", "24"], "steps, and images of a device"
    assert "retrain" not in said[1][0]
    assert not (tmp_path / "run").exists()


def wait_for(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator_address": "host"}, "coordinator_address is 'host'; expected HOST:PORT"),
        ({"coordinator_address": "host:0", "num_processes": 2}, "expected HOST:PORT"),
        ({"coordinator_address": "host:1"}, "num_processes is 1; expected 2 or more processes"),
        ({"num_processes": 2}, "num_processes is 2; expected 1 without --coordinator_address"),
        ({"coordinator_address": "host:1", "num_processes": 2, "process_id": 2}, "process_id is 2; expected a number"),
        ({"coordinator_address": "host:1", "num_processes": 2}, "process_id is None; expected a number from 0 to 1"),
        ({"process_id": 0}, "process_id is 0; expected none without --coordinator_address"),
        ({"initialization_timeout": 0}, "initialization_timeout is 0; expected 1 second or more"),
        ({"coordinator_address": "host:1", "distributed": True}, "expected none with --distributed"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProcessConfig(**settings)
