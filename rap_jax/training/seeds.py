"""Runs of one recipe that differ by their seed, in one process.

    done, failed = run_seeds([OneRun(config, dataset, out_dir) for ...])

Each has a folder of its own, the same as that of a run alone: a run that was begun in one way may go on in the other.
The runs train together (`rap_jax.training.together`); all else is done for one run after the other. Images and compiled
programs are shared. Finished runs are read.
"""

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from rap_jax._runtime.interrupt import catch_signals
from rap_jax._runtime.mesh import DeviceSplit, make_mesh, put_split
from rap_jax._runtime.processes import num_processes
from rap_jax._runtime.text import as_table
from rap_jax.config import ComputeConfig, OutputConfig, RunConfig, require
from rap_jax.data import Split
from rap_jax.runs.folder import check_run_folder
from rap_jax.training.input import PooledInput, pooled_inputs
from rap_jax.training.pipeline import OneRun, make_parts, run_training
from rap_jax.training.provenance import identity
from rap_jax.training.start import make_model, make_start
from rap_jax.training.together import run_together


def run_seeds(
    runs: Sequence[OneRun],
    *,
    output: OutputConfig = OutputConfig(),  # noqa: B008  frozen
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008  frozen
    command: str = "",
    devices: list[jax.Device] | None = None,
) -> tuple[dict[int, dict[str, Any]], dict[int, ValueError]]:
    """Runs, or resumes, runs that differ by seed, name, start and folder alone.

    Args:
      runs: each of another seed; their data sets as from `load_datasets`, so that images are stored once.
      output, compute, command, devices: as for `rap_jax.training.pipeline.run`; the devices share the runs.

    Returns:
      The content of each results.json by seed, and by seed why a run could not go on; its folder holds the last good
      checkpoint.

    Raises:
      ValueError: bad settings, or a folder of another run. Nothing is trained then.
      Interrupted: a signal came; the states are saved.
    """
    _check(runs, compute)
    mesh = make_mesh(devices)
    _check_folders(runs, compute, mesh)
    first, own = runs[0], make_mesh([mesh.devices.flat[0]])
    places = {id(run.dataset.train.images): place for place, run in enumerate(runs)}

    @functools.cache
    def inputs() -> tuple[PooledInput, ...]:
        return pooled_inputs([run.dataset.train for run in runs], own)

    def put_test(split: Split) -> DeviceSplit:
        return tests(id(split.images)) if split.images is first.dataset.test.images else put_split(*split, own)

    tests = functools.cache(lambda _: put_split(*first.dataset.test, own))
    with catch_signals() as interrupt:
        parts = dataclasses.replace(
            make_parts(first.config, first.dataset, own, output=output, compute=compute, command=command),
            put_train=lambda split: inputs()[places[id(split.images)]],
            put_test=put_test,
            signals=lambda: contextlib.nullcontext(interrupt),
        )
        return run_together({run.config.seed: run_training(run, parts) for run in runs}, mesh)


def _check(runs: Sequence[OneRun], compute: ComputeConfig) -> None:
    require(len(runs) >= 1, "number of seeds", len(runs), "1 or more")
    for name, found in (("seed", [run.config.seed for run in runs]), ("folder", [run.out_dir for run in runs])):
        require(
            len(set(found)) == len(found), f"{name}s", [str(each) for each in found], f"another {name} for each run"
        )
    recipes = {_recipe(run.config) for run in runs}
    require(len(recipes) == 1, "number of recipes", len(recipes), "runs that differ by seed, name and start alone")
    require(num_processes() == 1, "number of processes", num_processes(), "1, which trains all seeds")
    hint = "1 with several seeds, each of which has its weights on one device"
    require(compute.num_model_shards == 1, "num_model_shards", compute.num_model_shards, hint)
    hint = "False with several seeds, whose images lie on the devices once"
    require(not compute.stream_data, "stream_data", compute.stream_data, hint)


def _check_folders(runs: Sequence[OneRun], compute: ComputeConfig, mesh: Mesh) -> None:
    """Before the first folder is begun: a run that cannot begin there, or has nothing to begin with, is refused."""
    for config, dataset, out_dir, _ in runs:
        try:
            start = make_start(config, dataset, make_model(config, dataset, compute, mesh), mesh)
            check_run_folder(out_dir.expanduser().resolve(), identity(config, dataset, start))
        except ValueError as error:
            raise ValueError(f"Seed {config.seed}: {error}") from error


def _recipe(config: RunConfig) -> RunConfig:
    start = dataclasses.replace(config.start, run_dir=config.start.run_dir and "of each")
    return dataclasses.replace(config, seed=0, name="of_each", start=start)


def format_seeds_table(results: Mapping[int, Mapping[str, Any]]) -> str:
    """One table of finished runs: the test result and the sparsity of each seed, then mean and standard deviation.

    Args:
      results: the content of results.json by seed.
    """
    header = ("Seed", "Natural accuracy", "PGD accuracy", "Zeros", "Run folder")
    numbers = [_numbers(each) for each in results.values()]
    rows = [
        (str(seed), *(f"{number:.2%}" for number in own), str(each.get("run_dir", "-")))
        for (seed, each), own in zip(results.items(), numbers, strict=True)
    ]
    columns = list(zip(*numbers, strict=True))
    if columns:
        rows.append(("mean", *(f"{statistics.fmean(column):.2%}" for column in columns), ""))
    if len(numbers) > 1:
        rows.append(("spread", *(f"{statistics.stdev(column):.2%}" for column in columns), "standard deviation"))
    return f"{as_table(header, rows)}\n"


def _numbers(results: Mapping[str, Any]) -> tuple[float, float, float]:
    test = results["test"]
    return test["natural_accuracy"], test["robust_accuracy"], results["sparsity"]["overall"]["sparsity"]
