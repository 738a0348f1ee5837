"""Several networks of a sweep at once, against one after the other: `python -m benchmarks.sweep`.

    python -m benchmarks.sweep --only=4      one width; the others of the written table stay as they are
    python -m benchmarks.sweep --quick       fewer and shorter rounds

LeNets of one width that differ by their seed, batch 128, PGD-10, as `--flagfile=quick_mnist` trains them. Every way
works in processes of its own, and they take turns.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from benchmarks.machine import num_cores
from benchmarks.records import Column, Plot, Rows, markdown_table, write_records
from benchmarks.sweep_worker import BATCH_SIZE
from benchmarks.turns import in_turn
from benchmarks.worker import Answer, Worker

WIDTHS = (1, 2, 4)
ABOUT = """\
One training step (attack of 10 steps, update) of LeNets that differ by their seed, batch 128, as `quick_mnist` trains
them; in turn, each way in processes of its own.

- Milliseconds: of a step of one network, the time of a step of all divided by their number; median of the rounds.
- Speed: the ratio to one after the other, by which a sweep is done sooner; above 1 is faster.
- Spread: slowest minus fastest round over the median. Others: most cores that other programs used in a round.
- One after the other: as `launch.main` does it, one device per core, the attack's batch split over them. On one device:
  the same with `--num_cpu_devices=1`, where XLA may use all cores for one operation.
- vmap: the states are stacked and one program does the step for all networks; in parts of 32 images, as elsewhere.
- Processes: `launch.main --num_cpu_devices=1` so many times at once; with a core each: bound to it."""
COLUMNS = (
    Column("milliseconds", "ms per network and step", ".1f"),
    Column("ratio", "speed, ratio to one after the other", ".2f"),
    Column("images_per_second", "images/s", ".0f"),
    Column("spread", "spread", ".0%"),
    Column("other_cores", "others", ".2f"),
)


class Way(NamedTuple):
    """How a sweep is run. Attributes: networks, devices: of a process, 0 for a device per core; processes; bound."""

    networks: int = 1
    devices: int = 0
    processes: int = 1
    bound: bool = False


class Group:
    """The processes of a way, which work at the same time."""

    def __init__(self, width: int, way: Way):
        self.workers = [
            Worker(
                "benchmarks.sweep_worker",
                *map(str, (width, way.networks, way.devices, *([number] if way.bound else []))),
            )
            for number in range(way.processes)
        ]

    def steps(self, count: int) -> Answer:
        """Steps of every network: seconds of a step of one network, and the processor time of it all."""
        start = time.perf_counter()
        with ThreadPoolExecutor(len(self.workers)) as threads:
            answers = list(threads.map(lambda worker: worker.ask("steps", count=count), self.workers))
        # By the process that was last: until then the others had a core more.
        slowest = max(answer["seconds"] for answer in answers)
        return {
            "seconds": slowest / len(self.workers),
            "total_seconds": time.perf_counter() - start,
            "processor_seconds": sum(answer["processor_seconds"] for answer in answers),
        }

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers:
            worker.close()


def ways(num_cores: int) -> dict[str, Way]:
    """Title -> way; the first is what the others are compared with."""
    return {
        "one after the other": Way(),
        "one after the other, on one device": Way(devices=1),
        "vmap of 3, on one device": Way(networks=3, devices=1),
        f"vmap of {2 * num_cores}, {num_cores} devices": Way(networks=2 * num_cores, devices=num_cores),
        f"{num_cores} processes": Way(devices=1, processes=num_cores),
        f"{num_cores} processes, a core each": Way(devices=1, processes=num_cores, bound=True),
    }


def measure(width: int, *, rounds: int, turn_seconds: float) -> Rows:
    """Times all ways for one width, as rows of the table."""
    groups = {title: Group(width, way) for title, way in ways(num_cores()).items()}
    try:
        turns = {title: _turn(group, turn_seconds) for title, group in groups.items()}
        times = in_turn(turns, rounds=rounds)
    finally:
        for group in groups.values():
            group.close()
    base = next(iter(times.values())).median
    return {
        _name(width, title): {
            "milliseconds": 1e3 * found.median,
            "ratio": base / found.median,
            "images_per_second": BATCH_SIZE / found.median,
            "spread": found.spread,
            "other_cores": max(found.other_cores),
            "seconds": found.seconds,
        }
        for title, found in times.items()
    }


def _turn(group: Group, turn_seconds: float) -> Callable[[], Answer]:
    """As many steps as fill a turn, after one that compiles."""
    group.steps(count=1)
    count = max(1, round(turn_seconds / group.steps(count=1)["total_seconds"]))
    return lambda: group.steps(count=count)


def _name(width: int, title: str) -> str:
    return f"w={width}: {title}"


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, choices=WIDTHS, help="one width")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    arguments = parser.parse_args()
    settings: dict[str, Any] = {"rounds": 3, "turn_seconds": 0.5} if arguments.quick else {}
    for width in [arguments.only] if arguments.only else WIDTHS:
        found = measure(width, **{"rounds": 5, "turn_seconds": 1.5} | settings)
        write_records(
            "sweep",
            found,
            about=ABOUT,
            columns=COLUMNS,
            order=[_name(each, title) for each in WIDTHS for title in ways(num_cores())],
            plot=Plot("ratio", "speed of a sweep, against one network after the other", level=1.0),
        )
        print(markdown_table(found, COLUMNS), flush=True)


if __name__ == "__main__":
    main()
