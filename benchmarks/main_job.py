"""The whole main job of rap_jax against PyTorch, from the command to the accuracies: `python -m benchmarks.main_job`.

    python -m benchmarks.main_job --raw_data_dir=FOLDER     full MNIST, one epoch a stage
    python -m benchmarks.main_job --steps=100               mnist_5k, 100 steps a stage

Pretrain, ADMM, cut, retrain; LeNet of width 8 loses half of the filters of conv1, conv2 and fc1; PGD-40 everywhere. On
one side the command `launch.main`, without a compilation cache from earlier runs; on the other the authors' algorithm
in PyTorch, with the same evaluations. Both in turn; the last line is `ratio R`. Needs the extra `bench`.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.job_settings import JobSettings
from benchmarks.records import Column, Plot, markdown_table, write_records

ABOUT = """\
Three stages (pretrain, ADMM, masked retrain) with all evaluations, from the start of the process to its end, in
seconds; rap_jax by its command with an empty compilation cache, PyTorch by the authors' algorithm in their memory
layout, in turn. MB: the peak of the process. The accuracies are those of this short training."""
COLUMNS = (
    Column("pytorch_seconds", "PyTorch s", ".1f"),
    Column("rap_jax_seconds", "rap_jax s", ".1f"),
    Column("ratio", "ratio", ".2f"),
    Column("pytorch_megabytes", "PyTorch MB", ".0f"),
    Column("rap_jax_megabytes", "rap_jax MB", ".0f"),
    Column("pytorch_test", "PyTorch natural / PGD"),
    Column("rap_jax_test", "rap_jax natural / PGD"),
)


class Finished(NamedTuple):
    """A process that has ended. Attributes: seconds; megabytes: its peak; test: its accuracies."""

    seconds: float
    megabytes: float
    test: str


def main() -> None:
    """Runs both, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw_data_dir", help="folder with the official MNIST files; without it mnist_5k is used")
    parser.add_argument("--steps", type=int, default=0, help="steps of a stage; 0 is one pass over the data")
    parser.add_argument("--width", type=int, default=JobSettings.width)
    parser.add_argument("--num_steps", type=int, default=JobSettings.num_steps, help="K of the attacks")
    parser.add_argument("--rounds", type=int, default=1, help="how often both run; the median counts")
    arguments = parser.parse_args()
    settings = JobSettings(arguments.width, num_steps=arguments.num_steps, steps_per_epoch=arguments.steps)
    dataset = "mnist" if arguments.raw_data_dir else "mnist_5k"
    with tempfile.TemporaryDirectory() as folder:
        rows = _measure(settings, dataset, arguments.raw_data_dir, Path(folder), arguments.rounds)
    length = f"{arguments.steps} steps a stage" if arguments.steps else "one epoch a stage"
    name = f"LeNet w={arguments.width}, K={arguments.num_steps}, {dataset}, {length}"
    plot = Plot("ratio", "time to finish, PyTorch over rap_jax", level=1.0)
    found = write_records("main_job", {name: rows}, about=ABOUT, columns=COLUMNS, order=(), plot=plot)
    print(markdown_table({name: found[name]}, COLUMNS))
    print(f"ratio {rows['ratio']:.2f}")


def _measure(settings: JobSettings, dataset: str, raw: str | None, folder: Path, rounds: int) -> dict[str, Any]:
    (folder / "settings.json").write_text(json.dumps(dataclasses.asdict(settings)))
    data, prepared = folder / "data.npz", folder / "prepared"
    _run(["benchmarks.job_data", str(data), dataset, str(prepared), *([raw] if raw else [])], folder)
    sides: dict[str, list[Finished]] = {"rap_jax": [], "pytorch": []}
    for number in range(rounds):
        out = folder / f"run{number}"
        flags = [f"--dataset={dataset}", f"--data_dir={prepared}", f"--out_dir={out}", *settings.flags]
        cache = f"--compilation_cache_dir={folder / f'cache{number}'}"
        seconds, megabytes, _ = _run(["launch.main", "--name=main_job", cache, *flags], folder)
        test = json.loads((out / "results.json").read_text())["test"]
        accuracies = _in_percent(test["natural_accuracy"], test["robust_accuracy"])
        sides["rap_jax"].append(Finished(seconds, megabytes, accuracies))
        job = ["benchmarks.pytorch.job", str(folder / "settings.json"), str(data)]
        seconds, megabytes, printed = _run(job, folder)
        accuracies = _in_percent(*json.loads(printed.splitlines()[-1])["test"])
        sides["pytorch"].append(Finished(seconds, megabytes, accuracies))
    found: dict[str, Any] = {}
    for name, runs in sides.items():
        found[f"{name}_seconds"] = statistics.median(run.seconds for run in runs)
        found[f"{name}_megabytes"] = max(run.megabytes for run in runs)
        found[f"{name}_test"] = runs[-1].test
        found[f"{name}_rounds"] = [run.seconds for run in runs]
    return found | {"ratio": found["pytorch_seconds"] / found["rap_jax_seconds"]}


def _in_percent(natural: float, robust: float) -> str:
    return f"{natural:.1%} / {robust:.1%}"


def _run(arguments: list[str], folder: Path) -> tuple[float, float, str]:
    """Runs a module to its end: seconds, peak of its memory in MB, what it printed.

    Raises:
      RuntimeError: it failed.
    """
    print(f"python -m {arguments[0]}", flush=True)
    with (folder / "printed").open("w+") as printed:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=printed)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.kill()
            raise
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{arguments[0]} ended with {process.returncode}; its message stands above.")
        printed.seek(0)
        return seconds, usage.ru_maxrss / 1024 ** (2 if sys.platform == "darwin" else 1), printed.read()


if __name__ == "__main__":
    main()
