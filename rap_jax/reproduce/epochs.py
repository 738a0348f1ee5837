"""How far the accuracy under attack moves from one epoch to the next, and what it is worth to choose one of them.

The paper reports the epoch that was best on the test set, each run here the one that was best on validation. Where the
epochs of one run lie further apart than our number and the paper's, that difference says little of the method.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rap_jax._runtime.text import as_attack
from rap_jax.config import STAGES
from rap_jax.reproduce.collect import Measured, MeasuredCell
from rap_jax.reproduce.job import Job
from rap_jax.reproduce.settings import is_run
from rap_jax.reproduce.values import as_number
from rap_jax.runs.metrics import read_metrics

TITLE = "What the choice of the epoch is worth"
HEADER = ("Cell", "Seed", "Epochs", "Kept", "Their mean", "Lowest to highest", "Last")
# Fewer say nothing of how epochs differ.
_FEWEST = 2


class LateEpochs(NamedTuple):
    """The last third of the epochs of a run's last stage; accuracies under PGD on validation, in percent.

    Attributes:
      row, column: of the cell.
      seed: of the run.
      job: its name.
      num_epochs: all that the stage had.
      kept: accuracy of the epoch that the run ended with.
      late: accuracy of each of the last third.
    """

    row: str
    column: str
    seed: int
    job: str
    num_epochs: int
    kept: float
    late: tuple[float, ...]


def late_epochs(measured: Measured, out: Path) -> tuple[LateEpochs, ...]:
    """Of each run that was trained against an attack and has a metrics.jsonl beside its results, in the table's order;
    one that several cells share stands with the first of them.

    Args:
      out: folder of the plan.
    """
    found: dict[str, LateEpochs] = {}
    for cell, asked in zip(measured.cells, measured.table.cells, strict=True):
        for each in _of_cell(cell, asked.network, measured, out):
            found.setdefault(each.job, each)
    return tuple(found.values())


def about(measured: Measured) -> str:
    """What the table shows, with the attack under which the runs choose; it is not the one that is reported."""
    configs = [results["config"] for results in measured.results.values() if is_run(results)]
    attacks = dict.fromkeys(as_attack(config["select_attack"]) for config in configs if config["train"]["attack"])
    return (
        f"Accuracy on validation of the last third of the epochs of a run's last stage, when the learning rate is "
        f"small, under the attack by which an epoch is chosen: PGD, {' or '.join(attacks)}. Kept is the epoch of the "
        f"whole stage that was best; the numbers above are those of its network on the test set, under the attack "
        f"that is reported."
    )


def as_cells(epochs: LateEpochs) -> tuple[str, ...]:
    """The texts below `HEADER`."""
    count = f"{epochs.num_epochs - len(epochs.late) + 1} to {epochs.num_epochs}"
    spread = f"{as_number(min(epochs.late))} to {as_number(max(epochs.late))}"
    mean = as_number(sum(epochs.late) / len(epochs.late))
    return (
        f"{epochs.row}, {epochs.column}", str(epochs.seed), count, as_number(epochs.kept), mean, spread,
        as_number(epochs.late[-1]),
    )  # fmt: skip


def _of_cell(cell: MeasuredCell, network: tuple[Job, ...], measured: Measured, out: Path) -> Iterator[LateEpochs]:
    for seed in sorted({seed for value in cell.values for seed in value.by_seed}):
        job = network[seed]
        results = measured.results.get(job.name, {})
        metrics = out / job.place / "metrics.jsonl"
        if not results.get("config", {}).get("train", {}).get("attack") or not metrics.is_file():
            continue
        kept, accuracies = _last_stage(metrics)
        late = accuracies[-math.ceil(len(accuracies) / 3) :]
        if kept is not None and len(late) >= _FEWEST:
            yield LateEpochs(cell.row, cell.column, seed, job.name, len(accuracies), kept, tuple(late))


def _last_stage(metrics: Path) -> tuple[float | None, list[float]]:
    """The accuracy of the epoch that was kept, and that of every epoch."""
    found = [line for line in read_metrics(metrics) if line["kind"] == "validation"]
    stage = next((name for name in reversed(STAGES) if any(line["stage"] == name for line in found)), None)
    lines = [line for line in found if line["stage"] == stage]
    # ADMM selects none: its last epoch is what the cut is made from.
    kept = ([line for line in lines if line.get("selected")] or lines)[-1:]
    return 100 * kept[0]["robust_accuracy"] if kept else None, [100 * line["robust_accuracy"] for line in lines]
