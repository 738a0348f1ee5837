"""What a run was: what must not change while it goes on, and what results.json says of it."""

import dataclasses
import platform
from importlib import metadata
from typing import Any

from jax.sharding import Mesh

from rap_jax.config import RunConfig
from rap_jax.data import Dataset
from rap_jax.models import num_params
from rap_jax.start import Start

_PACKAGES = ("rap-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def identity(config: RunConfig, dataset: Dataset, start: Start) -> dict[str, Any]:
    """What must be the same for a run to be gone on with: the config, and data and weights by content, not by place."""
    settings = dataclasses.asdict(config)
    for place in ("data_dir", "raw_data_dir", "fallback_dataset", "dataset"):
        del settings["data"][place]
    settings["data"] |= {"name": dataset.name, "sha256": dataset.sha256}
    if dataset.name.startswith("folder_"):  # its name is that of a place
        del settings["data"]["name"]
    settings["start"] = start.about
    return settings


def describe(config: RunConfig, dataset: Dataset, start: Start, mesh: Mesh) -> dict[str, Any]:
    """The part of results.json that says what was run, on what."""
    return {
        "name": config.name,
        "dataset": dataset.name,
        "data": dataset.describe(),
        "seed": config.seed,
        "model": dataclasses.asdict(config.model) | {"num_params": num_params(start.weights.params)},
        "start": start.about,
        "config": dataclasses.asdict(config),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({mesh.devices.flat[0].platform})",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its sources without being installed
        return "not installed"
