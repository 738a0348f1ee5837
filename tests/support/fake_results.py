"""Results of jobs that were never run: the real config of their flags, and accuracies that a test chooses."""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny

from launch.configs import config_from_flags
from launch.job_configs import config_of
from rap_jax._runtime.integrity import write_checked
from rap_jax.reproduction.checks import as_json
from rap_jax.reproduction.job import Job, in_order
from rap_jax.reproduction.recipes import scale_of
from rap_jax.reproduction.results import TableResults, collect
from rap_jax.reproduction.tables import Table, build_table

SHA256 = "ceda791d3e53beaf95f8e213c414aa4d975006504eff93f785d685ecea3e892c"
VERSIONS = {"python": "3.11.7", "rap-jax": "0.1.0", "jax": "0.10.2", "numpy": "2.4.6"}
PARAMETERS = {1: 13_514, 2: 52_506, 4: 206_954, 8: 821_706, 16: 3_274_634}
SQUARE_BROKE, FINDING = 12, "Square, which uses no gradients, broke 12 images."
QUICK = scale_of("quick", max_width=4)
HOSTILE = "</code><script>alert(1)</script>|`x`\n# heading & *bold* [a](b)"
# Of a job: natural and PGD accuracy, and what AutoAttack leaves.
Accuracies = Callable[[Job], tuple[float, float, float]]


def all_jobs(table: Table) -> list[Job]:
    """The jobs of a table and all that they need."""
    return in_order([*table.jobs, *(job for cell in table.cells for job in cell.network)])


def seed_of(job: Job) -> int:
    return int(job.name.rpartition("seed")[2])


def by_seed(job: Job) -> tuple[float, float, float]:
    """Accuracies that differ from seed to seed and from kind to kind."""
    seed = seed_of(job)
    more = 0.01 if "_admm_" in job.name else 0.0
    return 0.96 + more + 0.002 * seed, 0.88 + more + 0.004 * seed, 0.85 + more + 0.005 * seed


def fill(
    out: Path, table: Table, accuracies: Accuracies = by_seed, *, without: Callable[[Job], bool] = lambda job: False
) -> dict[str, dict[str, Any]]:
    """Writes results.json for the jobs of a table.

    Returns:
      Name of a job -> its results.
    """
    written = {}
    for job in all_jobs(table):
        if without(job):
            continue
        make = run_results if job.module == "launch.main" else evaluation_results
        results = make(job, out, *accuracies(job))
        write(out, job, results)
        written[job.name] = results
    return written


def measured_2(out: Path) -> TableResults:
    """Table 2 to width 4 with three seeds, without one seed of a cell and without a whole other cell."""
    table = build_table("2", QUICK)
    fill(out, table, without=lambda job: job.name.endswith("w4_to_w2_seed1") or "_admm_w4_to_w1_" in job.name)
    return collect(table, out)


def write(out: Path, job: Job, results: dict[str, Any]) -> None:
    folder = out / job.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(write_checked(results))


def run_results(job: Job, out: Path, natural: float, robust: float, _: float) -> dict[str, Any]:
    config = dataclasses.asdict(config_from_flags(tiny.parse_flags(*job.command(out)[3:])))
    zeros = 0.75 if "_admm_" in job.name or "_rivals_" in job.name else 0.0
    width = config["model"]["width"]
    data = {"name": config["data"]["dataset"], "sha256": SHA256}
    cost = {"parameters": PARAMETERS[width] // (4 if zeros else 1), "effective_multiply_adds": 91_584}
    num_images = {"train": 54_000, "validation": 6_000, "test": 10_000}
    return {
        "name": job.name,
        "dataset": config["data"]["dataset"],
        "data": data | {"num_images": num_images},
        "seed": config["seed"],
        "model": config["model"] | {"num_params": PARAMETERS[width]},
        "config": config,
        "versions": VERSIONS,
        "device": "2 x cpu (cpu)",
        "command": shlex.join(job.command(out)),
        "seconds": {"total": 600.0, "test": 30.0},
        "stages": {},
        "test": {"natural_accuracy": natural, "robust_accuracy": robust, "num_examples": 10_000},
        "sparsity": {"overall": {"sparsity": zeros}},
        "cost": {"forms": {"compacted": cost}},
    }


def evaluation_results(job: Job, out: Path, natural: float, robust: float, auto: float) -> dict[str, Any]:
    has_auto_attack = "--auto_attack=standard" in job.flags
    attack = {"norm": "linf", "epsilon": 0.3, "step_size": 0.01, "num_steps": 40, "num_restarts": 1}
    left = {"robust_accuracy": auto, "num_examples": 1_000}
    parts = [{"name": "apgd-ce", "broken": 100}, {"name": "square", "broken": SQUARE_BROKE}]
    sources = [job for flag, jobs in job.inputs for job in jobs if flag == "transfer_from"]
    return {
        "name": job.inputs[0][1][0].name,
        "network": {"model": {"name": "lenet_mnist"}},
        "data": {"name": "mnist", "sha256": SHA256, "attacked_sha256": SHA256[::-1]},
        "config": as_json(config_of(job)),
        "versions": VERSIONS,
        "device": "2 x cpu (cpu)",
        "command": shlex.join(job.command(out)),
        "pgd": None if has_auto_attack else {"attack": attack | {"random_start": True}},
        "clean": {"natural_accuracy": natural, "num_examples": 1_000},
        "auto_attack": left | {"parts": parts} if has_auto_attack else None,
        "findings": [{"name": "Square beats the gradients", "text": FINDING}] if has_auto_attack else [],
        "transfer": [{"robust_accuracy": robust, "num_examples": 10_000} for _ in sources],
        "combined": left,
    }
