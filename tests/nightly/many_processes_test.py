"""Several processes that compute as one end with the weights of one process; they agree, stop and go on together."""

import signal
from pathlib import Path

import jax
import pytest
import tiny
from normed_net import add_normed_net
from process_runs import NORMED, SECONDS, SELDOM, assert_same, finish, has_begun, wait_for

from rap_jax.runs.network import load_network

WIDE = "--width=4"  # wide enough that some arrays are cut into pieces


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by one process with one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish([tiny.start_command(folder, WIDE, SELDOM, num_devices=1)])
    return folder


@pytest.mark.parametrize("number", [2, 4])
def test_processes_end_with_the_weights_of_one(tmp_path: Path, alone: Path, number: int) -> None:
    finish(tiny.start_processes(tmp_path / "run", number, WIDE, SELDOM))
    assert_same(tmp_path / "run", alone)


def test_state_in_pieces_and_data_from_disk_over_processes(tmp_path: Path, alone: Path) -> None:
    finish(tiny.start_processes(tmp_path / "run", 2, WIDE, SELDOM, "--num_model_shards=2", "--stream_data"))
    assert_same(tmp_path / "run", alone)


@pytest.mark.parametrize("form", [(), ("--attack_batch_norm=batch",)])
def test_statistics_of_batch_norm_are_those_of_the_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]
) -> None:
    add_normed_net(monkeypatch)
    finish([tiny.start_command(tmp_path / "alone", *NORMED, *form, num_devices=1)])
    finish(tiny.start_processes(tmp_path / "run", 2, *NORMED, *form))
    assert jax.tree.leaves(load_network(tmp_path / "run").weights.batch_stats)
    assert_same(tmp_path / "run", tmp_path / "alone")


def test_two_processes_with_several_devices_each(tmp_path: Path, alone: Path) -> None:
    finish(tiny.start_processes(tmp_path / "run", 2, WIDE, SELDOM, "--num_cpu_devices=4", "--num_model_shards=2"))
    assert_same(tmp_path / "run", alone)


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
            wait_for(lambda stage=stage: has_begun(folder, stage))
            processes[0].send_signal(signal.SIGTERM)
        finish(processes, 128 + signal.SIGTERM if stage else 0)
    assert_same(folder, alone)


def test_a_signal_to_one_stops_all_and_one_process_goes_on(tmp_path: Path, alone: Path) -> None:
    folder = tmp_path / "run"
    processes = tiny.start_processes(folder, 2, WIDE, SELDOM)
    wait_for(lambda: has_begun(folder, "admm"))
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes, 128 + signal.SIGTERM)
    assert "stopped by SIGTERM in admm after step" in said[0]
    finish([tiny.start_command(folder, WIDE, SELDOM, num_devices=1)])
    assert_same(folder, alone)


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_is_killed_all_end_and_go_on_together(tmp_path: Path, alone: Path, killed: int) -> None:
    folder = tmp_path / "run"
    processes = tiny.start_processes(folder, 2, WIDE)
    wait_for(lambda: has_begun(folder, "admm"))
    processes[killed].kill()
    other = processes[1 - killed]
    _, said = other.communicate(timeout=SECONDS)
    processes[killed].communicate(timeout=SECONDS)
    assert other.returncode not in (0, None)
    # JAX may end a process by itself, with words of its own, once the first one is gone.
    assert "failed in what all of them compute" in said or (killed == 0 and "another task died" in said), said
    finish(tiny.start_processes(folder, 2, WIDE))
    assert_same(folder, alone)


def test_a_second_run_in_the_folder_is_refused_in_all_processes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = tiny.start_command(folder, WIDE, num_devices=1)
    wait_for(lambda: bool(tiny.metrics_of(folder)))
    said = finish(tiny.start_processes(folder, 2, WIDE), 1)
    assert all("is in use by another process" in text for text in said)
    first.terminate()
    first.communicate(timeout=SECONDS)


def test_one_that_waits_in_vain_says_so(tmp_path: Path) -> None:
    address = tiny.free_address()
    for number in (0, 1):
        given = (f"--coordinator_address={address}", "--num_processes=2", f"--process_id={number}")
        alone = tiny.start_command(tmp_path / "run", *given, "--initialization_timeout=5", num_devices=1)
        (said,) = finish([alone], 1)
        assert f"Process {number} waits for the 2 processes at {address}, 5 seconds at most." in said
        assert f"error: Process {number} has waited 5 seconds" in said.splitlines()[-1] and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_forecast_is_printed_by_one_and_leaves_nothing(tmp_path: Path) -> None:
    processes = tiny.start_processes(tmp_path / "run", 2, "--dry_run")
    said = [process.communicate(timeout=SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    (retrain,) = (line.split() for line in said[0][0].splitlines() if line.startswith("| retrain"))
    assert retrain[3:6:2] == ["9", "24"], "steps, and images of a device"
    assert "retrain" not in said[1][0]
    assert not (tmp_path / "run").exists()
