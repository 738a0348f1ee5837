"""The description of a run: its identity, which must not change while it goes on, and its part of results.json."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from rap_jax._runtime.devices import usable_cores
from rap_jax._runtime.environment import device_in_words, versions
from rap_jax.config import ComputeConfig, RunConfig
from rap_jax.data import Dataset
from rap_jax.models import num_params, use_cpu_form
from rap_jax.training.sharded_step import batch_mesh
from rap_jax.training.start import Start, choose_implementation


def identity(config: RunConfig, dataset: Dataset, start: Start) -> dict[str, Any]:
    """A run is resumed only if this is the same: the settings, and the first weights by content."""
    return settings_of(config, dataset) | {"start": start.about}


def settings_of(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """The config, with the data by content and not by place."""
    settings = dataclasses.asdict(config)
    for place in ("data_dir", "raw_data_dir", "fallback_dataset", "dataset"):
        del settings["data"][place]
    settings["data"] |= {"name": dataset.name, "sha256": dataset.sha256}
    if dataset.name.startswith("folder_"):  # its name is that of a place
        del settings["data"]["name"]
    return settings


def describe(config: RunConfig, dataset: Dataset, start: Start, mesh: Mesh) -> dict[str, Any]:
    """The settings, data, versions and devices of a run, for results.json."""
    return {
        "name": config.name,
        "dataset": dataset.name,
        "data": dataset.describe(),
        "seed": config.seed,
        "model": dataclasses.asdict(config.model) | {"num_params": num_params(start.weights.params)},
        "start": start.about,
        "config": dataclasses.asdict(config),
        "versions": versions(),
        "device": device_in_words(mesh),
    }


def describe_devices(config: RunConfig, compute: ComputeConfig, mesh: Mesh) -> str:
    """One line on the devices of a run: `Devices: 2 x cpu (2 cores), batch 128 = 2 x 64; convolutions: cpu form`."""
    device = mesh.devices.flat[0]
    cores = f" ({usable_cores()} cores)" if device.platform == "cpu" else f" ({device.platform})"
    form = "cpu" if use_cpu_form(choose_implementation(compute, mesh)) else "xla"
    batch = _batch_in_words(config, mesh)
    return f"Devices: {mesh.size} x {device.device_kind}{cores}, {batch}; convolutions: {form} form"


def _batch_in_words(config: RunConfig, mesh: Mesh) -> str:
    size, num_devices = config.batch_size, batch_mesh(config.train, mesh).size
    if num_devices > 1:
        return f"batch {size} = {num_devices} x {size // num_devices}"
    if mesh.size == 1:
        return f"batch {size}"
    why = "train_attack=none" if config.train.attack is None else "train_attack=free"
    if config.train.attacks_first:
        why = f"attack_batch_norm={config.train.attack_batch_norm}"
    return f"batch {size} on one of them ({why})"
