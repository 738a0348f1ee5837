"""Whether what is done was done with the settings that the plan has now, on the networks that are there now."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rap_jax._runtime.integrity import difference
from rap_jax.reproduce.job import Job
from rap_jax.reproduce.portions import Settings
from rap_jax.runs.network import has_network

# Where data and other runs lie does not matter.
_PLACES = ("data_dir", "raw_data_dir")


def check_settings(job: Job, out: Path, settings: Settings) -> None:
    """Refuses a finished job of other settings, other data or another network: a table must not mix them.

    Raises:
      ValueError: its results have other settings, which are shown, none, or come from a network that is no longer the
        one in the folder of the job that it needs.
    """
    results = job.results(out)
    if results is None:
        return
    place = out / job.place
    config = results.get("config")
    if not isinstance(config, dict):
        raise ValueError(f"{place / 'results.json'} has no config; move it away to have it made again.")
    wanted = settings.run if settings.evaluation is None else settings.evaluation
    assert wanted is not None  # one of the two
    before, now = _settings(config), _settings(json.loads(json.dumps(dataclasses.asdict(wanted))))
    if before != now:
        raise ValueError(
            f"{place} holds results of other settings:\n{difference(before, now)}\n"
            f"If it was run with --mnist_flags or --cifar10_flags, give them again. Else choose another --out, or move "
            f"that folder away to have it made again."
        )
    for need, digest in _networks(job, results):
        if digest != _network_of(need, out):
            raise ValueError(
                f"{place} was made from another network than {out / need.place} holds; move that folder away, and "
                f"those that need it, to have them made again."
            )


def check_networks(jobs: Iterable[Job], out: Path) -> None:
    """Refuses a plan in which a job that is not done needs a network that is not there although its run is done.

    Raises:
      ValueError: so it is, as where results were copied without their networks; names them.
    """
    waiting = [job for job in jobs if job.results(out) is None]
    needs = {need.name: need for job in waiting for need in job.needs if need.results(out) is not None}
    without = [need.place for need in needs.values() if not has_network(out / need.place)]
    if without:
        raise ValueError(
            f"{len(without)} runs in {out} are done but hold no network, and jobs that are not done need them: "
            f"{', '.join(without)}. Results that were copied without networks, such as those of the repository, can be "
            f"collected but not gone on with; choose another --out."
        )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in config.items() if name != "start"}
    if isinstance(known.get("data"), dict):
        known["data"] = {name: value for name, value in known["data"].items() if name not in _PLACES}
    return known


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
        found = json.loads((out / job.place / "stages" / "test.json").read_text())
        return str(found["network"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
