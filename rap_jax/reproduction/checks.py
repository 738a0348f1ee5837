"""Whether the finished jobs of a plan have its settings and networks, and how long jobs of the same settings took."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rap_jax._runtime.integrity import difference
from rap_jax.config import EvaluationConfig, RunConfig
from rap_jax.config.checks import complete
from rap_jax.reproduction.job import Job, read_results
from rap_jax.runs.network import has_network

JobConfig = RunConfig | EvaluationConfig
# The folders of data and of other runs may differ.
_LOCATIONS = ("data_dir", "raw_data_dir")


def check_settings(job: Job, out: Path, config: JobConfig) -> None:
    """Refuses a finished job of other settings, other data or another network: a table must not mix them.

    Raises:
      ValueError: its results have other settings, which are shown, or no settings, or they come from another network
        than that in the folder of the job that it needs.
    """
    results = job.results(out)
    if results is None:
        return
    folder, before, now = out / job.folder, results.get("config"), as_json(config)
    if not isinstance(before, dict):
        raise ValueError(f"{folder / 'results.json'} has no config; move it away to have it made again.")
    before = complete(before, now)
    if _settings(before) != _settings(now):
        raise ValueError(
            f"{folder} holds results of other settings:\n{difference(_settings(before), _settings(now))}\n"
            f"If it was run with --mnist_flags or --cifar10_flags, give them again. Else choose another --out, or move "
            f"that folder away to have it made again."
        )
    for need, digest in _networks(job, results):
        if digest != _network_of(need, out):
            raise ValueError(
                f"{folder} was made from another network than {out / need.folder} holds; move that folder away, and "
                f"those that need it, to have them made again."
            )


def check_networks(jobs: Iterable[Job], out: Path) -> None:
    """Refuses a plan in which a job that is not done needs the network of a finished run that holds none.

    So it is where results were copied without their networks.
    """
    waiting = [job for job in jobs if job.results(out) is None]
    needs = {need.name: need for job in waiting for need in job.needs if need.results(out) is not None}
    without = [need.folder for need in needs.values() if not has_network(out / need.folder)]
    if without:
        raise ValueError(
            f"{len(without)} runs in {out} are done but hold no network, and jobs that are not done need them: "
            f"{', '.join(without)}. Results that were copied without networks, such as those of the repository, can be "
            f"collected but not gone on with; choose another --out."
        )


def past_seconds(job: Job, config: JobConfig, folders: Iterable[Path]) -> float | None:
    """Mean seconds of finished jobs of the same settings and any seed in the folders of plans; None without any."""
    pattern = f"{job.folder.rpartition('_seed')[0]}_seed*/results.json"
    found = [read_results(path) for folder in folders for path in sorted(folder.glob(pattern))]
    now = as_json(config)
    alike = lambda before: _recipe(complete(before, now)) == _recipe(now)
    seconds = [each["seconds"]["total"] for each in found if "seconds" in each and alike(each["config"])]
    return statistics.fmean(seconds) if seconds else None


def as_json(config: JobConfig) -> dict[str, Any]:
    """The config as results.json holds it."""
    written: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return written


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in config.items() if name != "start"}
    if isinstance(known.get("data"), dict):
        known["data"] = {name: value for name, value in known["data"].items() if name not in _LOCATIONS}
    return known


def _recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that jobs of all seeds share."""
    return {name: value for name, value in _settings(config).items() if name not in ("name", "seed")}


def _networks(job: Job, results: Mapping[str, Any]) -> Iterator[tuple[Job, str | None]]:
    """The jobs whose networks a job began with or attacked, each with the digest that its results name."""
    inputs = dict(job.inputs)
    if job.module == "launch.evaluate":
        found = [results.get("network", {}), *results.get("sources", [])]
        yield from zip(
            (*inputs["checkpoint"], *inputs.get("transfer_from", ())), (one.get("sha256") for one in found), strict=True
        )
    elif results.get("start", {}).get("weights") == "final":
        yield inputs["start_run"][0], results["start"].get("sha256")


def _network_of(job: Job, out: Path) -> str | None:
    """The digest of the network that a training job ended with; None if it is not there."""
    try:
        found = json.loads((out / job.folder / "stages" / "test.json").read_text())
        return str(found["network"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
