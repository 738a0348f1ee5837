"""Timing of implementations in turn, as a table."""

import time
from collections.abc import Callable
from typing import Any

import jax

from rap_jax.models import Implementation

IMPLEMENTATIONS: tuple[Implementation, ...] = ("xla", "cpu")
NUM_REPEATS = 5

Timed = Callable[[], Any]


def best_times(runs: list[Timed]) -> list[float]:
    """Milliseconds of each, the best of `NUM_REPEATS` rounds in which all take their turn."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(NUM_REPEATS):
        for run, measured in zip(runs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run())
            measured.append(1e3 * (time.perf_counter() - start))
    return [min(measured) for measured in times]


def print_table(
    title: str, widths: tuple[int, ...], work: dict[str, Any], compiled: Callable[[Any, int, Implementation], Timed]
) -> None:
    """Prints a line for each width and each kind of work, with the time of every implementation and its ratio.

    Args:
        title: what is timed.
        widths: widths of the network.
        work: names and functions.
        compiled: makes a function of `work` ready to run, for a width and an implementation.
    """
    print(f"{title}; times in ms, ratios to {IMPLEMENTATIONS[0]}")
    print(f"{'width':>5}  {'work':<20}" + "".join(f"{name:>10}{'ratio':>7}" for name in IMPLEMENTATIONS))
    for width in widths:
        for name, function in work.items():
            times = best_times([compiled(function, width, implementation) for implementation in IMPLEMENTATIONS])
            columns = "".join(f"{milliseconds:>10.1f}{times[0] / milliseconds:>7.2f}" for milliseconds in times)
            print(f"{width:>5}  {name:<20}{columns}", flush=True)
