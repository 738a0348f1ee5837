"""Whether what is done was done with the settings that the plan has now."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rap_jax.folder import difference
from rap_jax.reproduce.job import Job
from rap_jax.reproduce.portions import Settings

# Where data and other runs lie does not matter; what they hold is in the name of the job.
_PLACES = ("data", "start")


def check_settings(job: Job, out: Path, settings: Settings) -> None:
    """Refuses a finished job of other settings: a table must not mix them.

    Raises:
      ValueError: its results have other settings, which are shown, or none.
    """
    results = job.results(out)
    if results is None:
        return
    place = out / job.place
    config = results.get("config")
    if not isinstance(config, dict):
        raise ValueError(f"{place / 'results.json'} has no config; delete it to have it made again.")
    wanted = settings.run if settings.evaluation is None else settings.evaluation
    assert wanted is not None  # one of the two
    before, now = _settings(config), _settings(json.loads(json.dumps(dataclasses.asdict(wanted))))
    if before != now:
        raise ValueError(
            f"{place} holds results of other settings:\n{difference(before, now)}\n"
            f"Choose another --out, or move that folder away to have it made again."
        )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _PLACES}
