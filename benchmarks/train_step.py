"""A training step of rap_jax against the authors' algorithm in PyTorch: `python -m benchmarks.train_step`.

    python -m benchmarks.train_step --only=lenet_w4     one row; the last line is `ratio 3.61`
    python -m benchmarks.train_step --quick             fewer and shorter rounds

Every framework works in a process of its own, and they take turns. PyTorch runs eagerly in float32, in both memory
layouts; the better one of those that the authors' networks can run in counts. Needs the extra `bench`.
"""

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.records import Column, Plot, markdown_table, write_records
from benchmarks.rows import LAYOUTS, ROWS, Row
from benchmarks.turns import Times, in_turn
from benchmarks.worker import Answer, Worker

ABOUT = """\
One training step (attack, update) of rap_jax with its defaults against the authors' algorithm in PyTorch (eager,
float32, attack in training mode, a natural forward pass), in turn, each in a process of its own.

- Images per second: median of the rounds; spread: slowest minus fastest round over the median.
- Ratio: against PyTorch in the better memory layout of those that the authors' networks can run in (their LeNet cannot
  in channels_last). In PyTorch's best layout: against a LeNet changed so that it can. Without natural pass: against
  PyTorch without the forward pass on clean images, which the authors make and rap_jax does not.
- GFLOP/s: (2 K + 4) forward passes of convolutions and dense layers, counted alike for both; share of GEMM: of a
  product of two 2048 x 2048 matrices, measured in the same run, the faster framework's.
- First step: with compilation (rap_jax: with an empty and with a filled compilation cache).
- MB: the peak of the process after some steps, and what of it was there after the imports (PyTorch's holds libraries
  for GPUs). With an empty compilation cache most of it is the compiler's; cached: with a filled one."""
COLUMNS = (
    Column("pytorch_images_per_second", "PyTorch images/s", ".0f"),
    Column("rap_jax_images_per_second", "rap_jax images/s", ".0f"),
    Column("ratio", "ratio", ".2f"),
    Column("ratio_best_layout", "in PyTorch's best layout", ".2f"),
    Column("ratio_without_natural_pass", "without natural pass", ".2f"),
    Column("pytorch_layout", "PyTorch layout"),
    Column("pytorch_spread", "PyTorch spread", ".0%"),
    Column("rap_jax_spread", "rap_jax spread", ".0%"),
    Column("pytorch_gflops", "PyTorch GFLOP/s", ".0f"),
    Column("rap_jax_gflops", "rap_jax GFLOP/s", ".0f"),
    Column("rap_jax_gemm_share", "share of GEMM", ".0%"),
    Column("pytorch_first_seconds", "PyTorch first step s", ".1f"),
    Column("rap_jax_first_seconds", "rap_jax first step s", ".1f"),
    Column("rap_jax_first_cached_seconds", "cached s", ".1f"),
    Column("pytorch_megabytes", "PyTorch MB", ".0f"),
    Column("pytorch_start_megabytes", "of which imports", ".0f"),
    Column("rap_jax_megabytes", "rap_jax MB", ".0f"),
    Column("rap_jax_cached_megabytes", "cached", ".0f"),
    Column("rap_jax_start_megabytes", "of which imports", ".0f"),
)


def measure(row: Row, *, rounds: int, turn_seconds: float) -> dict[str, Any]:
    """Times one row; the keys of the result are those of `COLUMNS` and a few more."""
    with tempfile.TemporaryDirectory() as cache:
        cold = _start("benchmarks.step_worker", row.name, cache)
        found = {"rap_jax_first_seconds": cold.ask("steps", count=1)["seconds"]}
        cold.ask("steps", count=1)
        found["rap_jax_start_megabytes"] = cold.ask("memory_at_start")["megabytes"]
        found["rap_jax_megabytes"] = cold.ask("memory")["megabytes"]
        cold.close()
        workers = {"rap_jax": _start("benchmarks.step_worker", row.name, cache)}
        found["rap_jax_first_cached_seconds"] = workers["rap_jax"].ask("steps", count=1)["seconds"]
    for layout in LAYOUTS:
        workers[layout] = _start("benchmarks.pytorch.worker", row.name, layout)
        first = workers[layout].ask("steps", count=1)["seconds"]
        found["pytorch_first_seconds"] = min(first, found.get("pytorch_first_seconds", first))
    ways = {name: _turn(worker, "steps", turn_seconds) for name, worker in workers.items()}
    memories = {layout: workers[layout].ask("memory")["megabytes"] for layout in LAYOUTS}
    for layout in row.layouts:
        ways[f"{layout} lean"] = _turn(workers[layout], "steps_without_natural_pass", turn_seconds)
    times = in_turn(ways, rounds=rounds)
    gemm = [2 * 2048**3 / workers[name].ask("gemm", count=5)["seconds"] / 1e9 for name in ("rap_jax", LAYOUTS[0])]
    found |= _compare(row, times) | {"rap_jax_gemm_gflops": gemm[0], "pytorch_gemm_gflops": gemm[1]}
    found["rap_jax_gemm_share"] = found["rap_jax_gflops"] / max(gemm)
    found["pytorch_gemm_share"] = found["pytorch_gflops"] / max(gemm)
    found["pytorch_megabytes"] = memories[found["pytorch_layout"]]
    found["rap_jax_cached_megabytes"] = workers["rap_jax"].ask("memory")["megabytes"]
    found["pytorch_start_megabytes"] = workers[LAYOUTS[0]].ask("memory_at_start")["megabytes"]
    for worker in workers.values():
        worker.close()
    return found


def _start(module: str, *arguments: str) -> Worker:
    """A worker that is ready, so that its imports disturb nobody's times."""
    worker = Worker(module, *arguments)
    worker.ask("memory_at_start")
    return worker


def _turn(worker: Worker, request: str, turn_seconds: float) -> Callable[[], Answer]:
    """As many steps as fill a turn."""
    count = max(1, round(turn_seconds / worker.ask(request, count=1)["seconds"]))
    return lambda: worker.ask(request, count=count)


def _compare(row: Row, times: dict[str, Times]) -> dict[str, Any]:
    best = min(row.layouts, key=lambda layout: times[layout].median)
    ours, theirs = times["rap_jax"], times[best]
    found: dict[str, Any] = {"pytorch_layout": best, "ratio": theirs.median / ours.median}
    found["ratio_without_natural_pass"] = times[f"{best} lean"].median / ours.median
    found["ratio_best_layout"] = min(times[layout].median for layout in LAYOUTS) / ours.median
    for name, side in (("rap_jax", ours), ("pytorch", theirs)):
        found[f"{name}_images_per_second"] = row.batch_size / side.median
        found[f"{name}_gflops"] = row.flops / side.median / 1e9
        found[f"{name}_spread"] = side.spread
    found["other_cores"] = max(max(side.other_cores) for side in times.values())
    found["seconds"] = {name: side.seconds for name, side in times.items()}
    return found


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(ROWS), help="one row; the others of the written table stay as they are")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    arguments = parser.parse_args()
    rounds, turn_seconds = (3, 0.5) if arguments.quick else (5, 1.5)
    for name in [arguments.only] if arguments.only else list(ROWS):
        found = measure(ROWS[name], rounds=rounds, turn_seconds=turn_seconds)
        rows = write_records(
            "train_step",
            {name: found},
            about=ABOUT,
            columns=COLUMNS,
            order=list(ROWS),
            plot=Plot("ratio", "images per second, rap_jax over PyTorch", level=1.0),
        )
        print(markdown_table({name: found}, COLUMNS), flush=True)
        print(f"ratio {found['ratio']:.2f}", flush=True)
    if not arguments.only:
        print(markdown_table(rows, COLUMNS))


if __name__ == "__main__":
    main()
