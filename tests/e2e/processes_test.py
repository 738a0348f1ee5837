"""Two processes that compute as one: stopped by a signal, gone on with, the weights of one process in the end."""

import signal
from pathlib import Path

import jax
import pytest
import tiny
from normed_net import add_normed_net
from process_runs import NORMED, assert_same, finish, has_begun, wait_for

from rap_jax.runs.network import load_network

WIDE = "--width=6"  # wide enough that the kernel of conv2 is cut into pieces


def test_pieces_streams_and_batch_norm_with_a_signal_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_normed_net(monkeypatch)
    alone, folder = tmp_path / "alone", tmp_path / "run"
    finish([tiny.start_command(alone, *NORMED, WIDE, num_devices=1)])
    given = (*NORMED, WIDE, "--num_model_shards=2", "--stream_data")
    processes = tiny.start_processes(folder, 2, *given)
    wait_for(lambda: has_begun(folder, "admm"))
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes, 128 + signal.SIGTERM)
    assert "stopped by SIGTERM in admm after step" in said[0]
    finish(tiny.start_processes(folder, 2, *given))
    assert jax.tree.leaves(load_network(folder).weights.batch_stats)
    assert_same(folder, alone)


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--admm_learning_rate=0.03", "admm.optimizer.learning_rate: 0.02 in process 0, 0.03 in process 1"),
        pytest.param("--dry_run", "dry_run: False in process 0, True in process 1", marks=pytest.mark.nightly),
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
