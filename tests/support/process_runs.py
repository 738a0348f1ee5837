"""Runs on the tiny data by several processes: how they end, and that their numbers are those of one process."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tiny

from rap_jax.runs.network import load_network

SECONDS = 300
SELDOM = "--checkpoint_every_seconds=1000"  # at the end of a stage and after a signal, which takes less time
# Without what makes much of rounding: steps of a sign, in the attack and for a gradient that is nearly zero in Adam.
NORMED = (
    *(SELDOM, "--model=normed_net", "--sparsity=conv2:0.5", "--norm=l2", "--epsilon=1"),
    *("--train_step_size=0.5", "--select_step_size=0.5", "--report_step_size=0.5"),
    *(f"--{stage}_optimizer=sgd" for stage in tiny.STAGES),
)


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


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.05)


def has_begun(folder: Path, stage: str) -> bool:
    return any(line["stage"] == stage for line in tiny.metrics_of(folder))
