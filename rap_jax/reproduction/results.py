"""The results of a table as far as its jobs are done, read from their results.json.

found = collect(build_table("2", scale), Path("results/quick"))
found.cells[0].values[0].mean
"""

import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rap_jax._runtime.integrity import flatten
from rap_jax._runtime.text import as_radius
from rap_jax.config import STAGES
from rap_jax.reproduction.cells import Cell, Quantity, Table
from rap_jax.reproduction.job import Job, in_order
from rap_jax.runs.metrics import read_metrics

Results = dict[str, Any]  # the content of a results.json
# Points below the paper within which a value counts as reached: natural accuracy, and accuracy under any attack.
NATURAL_MARGIN, ATTACKED_MARGIN = 1.0, 1.5
# Settings that do not change what is learnt, or that are no settings.
_NO_SETTINGS = ("name", "seed", "eval_batch_size", "small_retrain", "start.", "data.data_dir", "data.raw_data_dir",
                "data.fallback_dataset", "data.validation_fraction")  # fmt: skip
_FEWEST_LATE_EPOCHS = 2


class MeasuredAccuracy(NamedTuple):
    """An accuracy as a job has measured it."""

    accuracy: float  # in [0, 1]
    num_images: int


class Value(NamedTuple):
    """A quantity of a cell, measured. Accuracies are in percent."""

    label: str
    by_seed: dict[int, float]  # of the seeds that are done
    num_seeds: int  # of the table
    num_images: int  # it was measured on; 0 before the first seed is done
    paper: float | None
    jobs: tuple[Job, ...]  # that measure it, one for each seed

    @property
    def mean(self) -> float | None:
        """Over the seeds that are done, rounded to two digits after the point; None before the first."""
        # A half is rounded up whatever its binary form: 97.105 is 97.11.
        return round(statistics.fmean(self.by_seed.values()) + 1e-9, 2) if self.by_seed else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The lowest and the highest seed; None before the first."""
        return (min(self.by_seed.values()), max(self.by_seed.values())) if self.by_seed else None

    @property
    def difference(self) -> float | None:
        """Our mean less the paper's number, in points; None where either is missing."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper

    @property
    def is_reached(self) -> bool:
        """Whether our mean is above the paper's number or within the margin below it."""
        margin = NATURAL_MARGIN if self.label == "natural" else ATTACKED_MARGIN
        # A margin of exactly one point is within it, whatever the rounding of the mean.
        return self.difference is not None and round(self.difference, 6) >= -margin


class Size(NamedTuple):
    """The size of a network."""

    parameters: int  # with its zeros
    compacted: int | None  # parameters after compaction
    sparsity: float  # share of zeros among the weights, in [0, 1]
    multiply_adds: int | None = None  # of an image, by weights that are not zero, after compaction


class MeasuredCell(NamedTuple):
    """A cell as far as it is done."""

    row: str
    column: str
    values: tuple[Value, ...]
    size: Size | None  # of the first seed; None before its network is done
    minutes: float | None = None  # of training, with the run that it began from; the mean over the seeds


class TableResults(NamedTuple):
    """A table as far as it is done."""

    table: Table
    cells: tuple[MeasuredCell, ...]  # in the order of the table
    results: dict[str, Results]  # job name -> results, of all finished jobs of the table and those that they need
    missing: tuple[Job, ...]  # in an order in which they can run

    @property
    def rows(self) -> tuple[str, ...]:
        """In the order of the table."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> tuple[str, ...]:
        """In the order of the table."""
        return tuple(dict.fromkeys(cell.column for cell in self.cells))

    @property
    def blocks(self) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        """Rows and columns that stand in one grid: all, or those of one beginning, see `Table.by_block`."""
        if not self.table.by_block:
            return ((self.rows, self.columns),)
        kinds = dict.fromkeys(row.partition(", ")[0] for row in self.rows)
        cells = {kind: [cell for cell in self.cells if cell.row.startswith(f"{kind}, ")] for kind in kinds}
        unique = lambda names: tuple(dict.fromkeys(names))
        return tuple((unique(c.row for c in each), unique(c.column for c in each)) for each in cells.values())

    @property
    def labels(self) -> tuple[str, ...]:
        """Of all quantities, in the order of the table."""
        return tuple(dict.fromkeys(value.label for value in self.values))

    @property
    def values(self) -> tuple[Value, ...]:
        """Every quantity of every cell."""
        return tuple(value for cell in self.cells for value in cell.values)

    def cell(self, row: str, column: str) -> MeasuredCell | None:
        """A cell, or None if the table has no such cell."""
        return next((cell for cell in self.cells if (cell.row, cell.column) == (row, column)), None)

    def value(self, row: str, column: str, label: str) -> Value | None:
        """A quantity of a cell, or None if there is no such cell or quantity."""
        cell = self.cell(row, column)
        return next((value for value in cell.values if value.label == label), None) if cell else None


def collect(table: Table, out: Path) -> TableResults:
    """Reads the results of a table from the folder of its plan.

    Raises:
      ValueError: a results.json is damaged or lacks what the table shows; names it.
    """
    jobs = in_order([*table.jobs, *(job for cell in table.cells for job in cell.network)])
    found = {job.name: job.results(out) for job in jobs}
    results = {name: result for name, result in found.items() if result is not None}
    missing = tuple(job for job in jobs if job.name not in results)
    return TableResults(table, tuple(_measured(cell, results) for cell in table.cells), results, missing)


def read_metric(results: Results, metric: str) -> MeasuredAccuracy:
    """The accuracy that a table shows, from the results of a job.

    Args:
      results: of a run or an evaluation.
      metric: `natural`, `robust`: of a run, on the test set. `clean`: of an evaluation, without an attack.
        `auto_attack`: of an evaluation, the worst case of all attacks where the scale has no AutoAttack. `combined`:
        the worst case. `transfer/N`: images of source N.

    Raises:
      ValueError: the results do not have it.
    """
    kind, _, number = metric.partition("/")
    try:
        if kind in ("natural", "robust"):
            found = results["test"]
            return MeasuredAccuracy(found[f"{kind}_accuracy"], found["num_examples"])
        if kind == "clean":
            return MeasuredAccuracy(results["clean"]["natural_accuracy"], results["clean"]["num_examples"])
        found = results["transfer"][int(number)] if kind == "transfer" else results[kind] or results["combined"]
        return MeasuredAccuracy(found["robust_accuracy"], found["num_examples"])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"The results of {results.get('name')} have no {metric} ({error!r}); move results.json away and run the "
            f"job again."
        ) from error


def is_run(results: Results) -> bool:
    """Whether the results are those of a training run; else they are those of an evaluation."""
    return "stages" in results


class AttackReliability(NamedTuple):
    """Signs that the attacks of one evaluation are too weak. Shares are in percent of the attacked images."""

    row: str
    column: str
    seed: int  # of the network
    with_gradients: float | None  # robust under the components of AutoAttack with gradients; None without it
    square: float | None  # of these broken by Square, which uses none
    auto_attack: float | None  # robust under all
    findings: dict[str, str]  # name -> text


def attack_reliability(found: TableResults) -> tuple[AttackReliability, ...]:
    """Of each evaluation with AutoAttack or with a finding, in the order of the table."""
    seeds = ((cell, value, seed) for cell in found.cells for value in cell.values for seed in value.by_seed)
    rows = [_reliability(cell, seed, found.results[value.jobs[seed].name]) for cell, value, seed in seeds]
    return tuple(row for row in rows if row.auto_attack is not None or row.findings)


class LateEpochs(NamedTuple):
    """The last third of the epochs of a run's last stage: accuracy under PGD on validation, in percent."""

    row: str
    column: str
    seed: int
    num_epochs: int  # of the whole stage
    kept: float  # of the epoch that the run kept
    late: tuple[float, ...]  # of each of the last third


def late_epochs(found: TableResults, out: Path) -> tuple[LateEpochs, ...]:
    """Of each adversarially trained run with a metrics.jsonl, once, in the order of the table.

    The paper reports the epoch that was best on the test set. Where the epochs of one run lie further apart than our
    number and the paper's, that difference says little of the method.
    """
    rows: dict[str, LateEpochs] = {}
    for asked, cell in zip(found.table.cells, found.cells, strict=True):
        for seed in sorted({seed for value in cell.values for seed in value.by_seed}):
            job = asked.network[seed]
            attack = found.results.get(job.name, {}).get("config", {}).get("train", {}).get("attack")
            metrics = out / job.folder / "metrics.jsonl"
            if attack and metrics.is_file() and job.name not in rows:
                kept, accuracies = _last_stage(metrics)
                late = accuracies[-math.ceil(len(accuracies) / 3) :]
                if kept is not None and len(late) >= _FEWEST_LATE_EPOCHS:
                    rows[job.name] = LateEpochs(cell.row, cell.column, seed, len(accuracies), kept, tuple(late))
    return tuple(rows.values())


class SettingDifference(NamedTuple):
    """A setting that differs from the paper's."""

    name: str  # of the field of the config, such as `train.attack.num_steps`
    here: tuple[str, ...]  # all values among the jobs
    paper: str


def setting_differences(found: TableResults, paper: Mapping[str, Mapping[str, Any]]) -> tuple[SettingDifference, ...]:
    """The settings in which the finished jobs differ from the `paper`'s: job name -> its config, as nested dicts."""
    values: dict[tuple[str, str], dict[str, None]] = {}
    for name, results in found.results.items():
        if name in paper:
            ours, theirs = dict(flatten(results["config"])), dict(flatten(paper[name]))
            if is_run(results):
                ours["data.dataset"] = results["dataset"]  # that of a fallback is another
            for setting in (setting for setting in ours if _is_used(setting, ours)):
                here, there = (_as_text(setting, config.get(setting)) for config in (ours, theirs))
                if here != there:
                    values.setdefault((setting, there), {})[here] = None
    return tuple(SettingDifference(name, tuple(here), there) for (name, there), here in values.items())


def training_epochs(found: TableResults) -> dict[int, list[str]]:
    """Epochs in all -> the columns of the finished networks that were trained for so many."""
    columns: dict[int, dict[str, None]] = {}
    for cell in found.table.cells:
        for job in cell.network:
            if job.name in found.results:
                columns.setdefault(_epochs(job, found.results), {})[cell.column] = None
    return {epochs: list(names) for epochs, names in sorted(columns.items())}


def _measured(cell: Cell, results: Mapping[str, Results]) -> MeasuredCell:
    done = [results[job.name] for job in cell.network if job.name in results]
    values = tuple(_value(quantity, results) for quantity in cell.quantities)
    times = [_seconds(job, results) / 60 for job in cell.network if job.name in results]
    minutes = sum(times) / len(times) if times else None
    return MeasuredCell(cell.row, cell.column, values, _size(done[0]) if done else None, minutes)


def _value(quantity: Quantity, results: Mapping[str, Results]) -> Value:
    jobs = enumerate(quantity.jobs)
    found = {seed: read_metric(results[job.name], quantity.metric) for seed, job in jobs if job.name in results}
    by_seed = {seed: 100 * measured.accuracy for seed, measured in found.items()}
    num_images = max((measured.num_images for measured in found.values()), default=0)
    return Value(quantity.label, by_seed, len(quantity.jobs), num_images, quantity.paper, quantity.jobs)


def _size(results: Results) -> Size:
    compacted = results.get("cost", {}).get("forms", {}).get("compacted")
    try:
        parameters, sparsity = results["model"]["num_params"], results["sparsity"]["overall"]["sparsity"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"The results of {results.get('name')} lack {error}; move results.json away.") from error
    if not compacted:
        return Size(parameters, None, sparsity)
    return Size(parameters, compacted["parameters"], sparsity, compacted.get("effective_multiply_adds"))


def _reliability(cell: MeasuredCell, seed: int, results: Results) -> AttackReliability:
    findings = {each["name"]: each["text"] for each in results.get("findings", [])}
    attack = results.get("auto_attack") or {"parts": []}
    square = next((part for part in attack["parts"] if part["name"] == "square"), None)
    if square is None:
        return AttackReliability(cell.row, cell.column, seed, None, None, None, findings)
    robust, broken = 100 * attack["robust_accuracy"], 100 * square["broken"] / results["clean"]["num_examples"]
    return AttackReliability(cell.row, cell.column, seed, robust + broken, broken, robust, findings)


def _last_stage(metrics: Path) -> tuple[float | None, list[float]]:
    """The accuracy of the epoch that was kept, and of every epoch of the last stage, in percent."""
    found = [line for line in read_metrics(metrics) if line["kind"] == "validation"]
    stage = next((name for name in reversed(STAGES) if any(line["stage"] == name for line in found)), None)
    lines = [line for line in found if line["stage"] == stage]
    # ADMM selects none: its last epoch is the one that is cut.
    kept = ([line for line in lines if line.get("selected")] or lines)[-1:]
    return 100 * kept[0]["robust_accuracy"] if kept else None, [100 * line["robust_accuracy"] for line in lines]


def _is_used(setting: str, config: Mapping[str, Any]) -> bool:
    """Whether a setting had an effect: not one of a stage that was left out, or of an attack that was not made."""
    group, _, field = setting.partition(".")
    if setting.startswith(_NO_SETTINGS) or (group in STAGES and not config[f"{group}.num_epochs"]):
        return False
    if group == "prune" and not config.get("admm.num_epochs"):
        return False
    of_attack = field in ("attack_batch_norm", "epsilon_ramp_epochs")
    return not (of_attack and config.get("train.attack", "given") is None)


def _as_text(setting: str, value: Any) -> str:
    if value is None or value in ("", []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_as_text(setting, each) for each in value)
    if isinstance(value, float):
        return as_radius(value) if setting.endswith(("epsilon", "step_size")) else f"{value:g}"
    return str(value)


def _epochs(job: Job, results: Mapping[str, Results]) -> int:
    """Of a run's stages and of the run whose weights it began with."""
    config = results[job.name]["config"]
    own = sum(config[stage]["num_epochs"] for stage in STAGES)
    return int(own) + sum(_epochs(need, results) for need in _trained_before(job, results))


def _seconds(job: Job, results: Mapping[str, Results]) -> float:
    """Of a run's stages, validation included, and of the run whose weights it began with."""
    spent = results[job.name]["seconds"]
    return float(spent["total"] - spent.get("test", 0.0)) + sum(
        _seconds(need, results) for need in _trained_before(job, results)
    )


def _trained_before(job: Job, results: Mapping[str, Results]) -> Iterator[Job]:
    goes_on = results[job.name]["config"]["start"]["weights"] == "final"
    return (need for need in job.needs if goes_on and need.name in results)
