"""The main job on the real MNIST, from the command to the table, and the evaluation of what it made.

The main job prepares its data and compiles its programs anew, as on a machine that has never run it; the evaluation
finds the data and the programs of the main job, as for a user who calls one after the other.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.accelerators.process import RowError, log_end
from benchmarks.accelerators.session import Bench, Row, Settings
from benchmarks.worker import Answer
from rap_jax._runtime.integrity import read_checked

# A few steps of the smallest network, and PGD of two steps.
_TINY_MAIN = (
    *("--width=1", "--steps_per_epoch=4", "--nomeasure_cost"),
    *(f"--{stage}_epochs=1" for stage in ("pretrain", "admm", "retrain")),
    "--pretrain_epsilon_ramp_epochs=0.5",
    *(f"--{part}_num_steps=2" for part in ("train", "select", "report")),
)
_TINY_EVALUATE = ("--num_images=8", "--pgd_num_steps=2", "--auto_attack=none")


def job_rows(settings: Settings) -> list[Row]:
    """Rows of the part `job`; the second one needs the run of the first."""
    return [Row("job/main", 2.0, measure_main), Row("job/evaluate", 1.0, measure_evaluate)]


def measure_main(bench: Bench) -> Answer:
    """`python -m launch.main --flagfile=lenet_mnist`, into a new folder."""
    settings = bench.settings
    if settings.raw_data_dir is None:
        raise RowError("raw_data_dir is None; expected a folder with the official files of MNIST.")
    shutil.rmtree(settings.job_dir, ignore_errors=True)  # an unfinished run would be gone on with
    tiny = _TINY_MAIN if settings.tiny else ()
    found = _run(bench, "main", f"--out_dir={settings.run_dir}", "--flagfile=lenet_mnist", *tiny)
    results = _results(settings.run_dir / "results.json")
    test = {name: results["test"][f"{name}_accuracy"] for name in ("natural", "robust")}
    return found | {"stage_seconds": results["seconds"], **test}


def measure_evaluate(bench: Bench) -> Answer:
    """`python -m launch.evaluate --checkpoint=RUN`: PGD and AutoAttack, by default on 1,000 images."""
    settings = bench.settings
    if not (settings.run_dir / "results.json").exists():
        raise RowError(f"{settings.run_dir} holds no finished run; expected that of --only=job/main.")
    shutil.rmtree(settings.run_dir / "evaluation", ignore_errors=True)
    tiny = _TINY_EVALUATE if settings.tiny else ()
    found = _run(bench, "evaluate", f"--checkpoint={settings.run_dir}", *tiny)
    results = _results(settings.run_dir / "evaluation" / "results.json")
    return found | {name: results[name] for name in ("clean", "pgd", "auto_attack", "combined")}


def _run(bench: Bench, command: str, *flags: str) -> Answer:
    """Seconds of a process with the command, and the peak of the card's memory in MB."""
    log = bench.log(command)
    folder = bench.settings.job_dir
    data = [f"--data_dir={folder}/data", f"--compilation_cache_dir={folder}/compiled"]
    if bench.settings.raw_data_dir is not None:
        data.append(f"--raw_data_dir={bench.settings.raw_data_dir}")
    with tempfile.TemporaryDirectory() as temporary, log.open("w") as output:
        memory = Path(temporary) / "memory.json"
        worker = [sys.executable, "-m", "benchmarks.accelerators.command_worker", command, str(memory)]
        began = time.monotonic()
        try:
            left = max(0.0, bench.deadline - began)
            done = subprocess.run([*worker, *flags, *data], stdout=output, stderr=output, timeout=left)
        except subprocess.TimeoutExpired as error:
            raise RowError(f"launch.{command} was stopped when the time was up. {log_end(log)}") from error
        seconds = time.monotonic() - began
        if done.returncode:
            raise RowError(f"launch.{command} ended with {done.returncode}. {log_end(log)}")
        return {"command_seconds": seconds} | json.loads(memory.read_text())


def _results(path: Path) -> Any:
    return read_checked(path.read_text())
