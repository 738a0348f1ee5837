"""Several seeds of one recipe in one process: `--num_seeds=N` trains the seeds SEED to SEED + N - 1.

`{seed}` in `--name`, `--out_dir` and `--start_run` stands for the seed.
"""

import copy
import sys
from pathlib import Path

from absl import flags

from launch.command import enable_compilation_cache
from launch.configs import compute_from_flags, config_from_flags, folder_of, getter
from launch.flagfiles import serialize_flags
from launch.settings import from_flags
from rap_jax._runtime.devices import start_cpu_devices
from rap_jax._runtime.mesh import make_mesh
from rap_jax.config import ComputeConfig, OutputConfig, ProcessConfig, RunConfig, require
from rap_jax.data import Dataset, load_datasets
from rap_jax.training.forecast import forecast, format_forecast
from rap_jax.training.pipeline import OneRun
from rap_jax.training.seeds import format_seeds_table, run_seeds

PLACEHOLDER = "{seed}"
_WITH_SEED = ("name", "out_dir", "start_run")


def check_seeds(values: flags.FlagValues) -> None:
    """Refuses flags that do not go together with several seeds."""
    get = getter(values)
    number, processes = get("num_seeds"), from_flags(ProcessConfig, get)
    if number == 1:
        return
    remedy = "or --num_seeds=1 and a command for each seed"
    require(not processes.several, "num_seeds", number, f"1 with several processes; give one process, {remedy}")
    shards = get("num_model_shards")
    require(shards == 1, "num_model_shards", shards, f"1 with --num_seeds={number}: a network has one device, {remedy}")
    hint = f"none with --num_seeds={number}, whose images lie on the devices, {remedy}"
    require(not get("stream_data"), "stream_data", get("stream_data"), hint)
    alone = f"none with --num_seeds={number}: it compiles the step of one seed"
    require(not get("target"), "target", get("target"), alone)
    require(get("seed") + number <= 2**32, "seed", get("seed"), f"a seed such that all {number} are below {2**32}")


def flags_of_seeds(values: flags.FlagValues) -> list[flags.FlagValues]:
    """The flags of the run of each seed, as if it were given alone."""
    get = getter(values)
    return [_flags_of_seed(values, get("seed") + place) for place in range(get("num_seeds"))]


def _flags_of_seed(values: flags.FlagValues, seed: int) -> flags.FlagValues:
    own = copy.deepcopy(values)
    for name in _WITH_SEED:
        given = own[name].value
        if name == "out_dir" and given and PLACEHOLDER not in given:
            given = str(Path(given) / f"seed{PLACEHOLDER}")
        own[name].value = given and given.replace(PLACEHOLDER, str(seed))
    own["seed"].value, own["num_seeds"].value = seed, 1
    return own


def fill_in_seed(values: flags.FlagValues) -> None:
    """The same placeholder in the flags of one seed, so that a command reads alike for any number."""
    for name in _WITH_SEED:
        given = values[name].value
        values[name].value = given and given.replace(PLACEHOLDER, str(values["seed"].value))


def train_seeds(values: flags.FlagValues, command: str) -> str:
    """Runs what the flags say; returns the table of results, or of the forecast.

    Raises:
      ValueError: bad flags, or a seed that could not go on; the others are finished then.
      Interrupted: a signal came; the states are saved.
    """
    each = flags_of_seeds(values)
    configs, compute = [config_from_flags(own) for own in each], compute_from_flags(values)
    start_cpu_devices(compute.num_cpu_devices, batch_size=configs[0].batch_size)
    enable_compilation_cache(getter(values)("compilation_cache_dir"))
    datasets = load_datasets(configs[0].data, seeds=[config.seed for config in configs])
    runs = []
    for own, config, dataset in zip(each, configs, datasets, strict=True):
        folder = folder_of(config, dataset.name, own["out_dir"].value)
        runs.append(OneRun(config, dataset, folder, serialize_flags(own, out_dir=folder)))
    num_devices = min(make_mesh().size, len(runs))
    print(_devices(len(runs), num_devices), file=sys.stderr, flush=True)
    if values["dry_run"].value:
        return _dry_run(configs[0], datasets[0], compute, len(runs), num_devices)
    done, failed = run_seeds(runs, output=from_flags(OutputConfig, getter(values)), compute=compute, command=command)
    table = format_seeds_table({run.config.seed: done[run.config.seed] | {"run_dir": str(run.out_dir)} for run in runs
                                if run.config.seed in done})  # fmt: skip
    if failed:
        if done:
            print(table, flush=True)
        reasons = "\n".join(f"seed {seed}: {error}" for seed, error in failed.items())
        others = "the others are finished" if done else "none is finished"
        raise ValueError(f"{len(failed)} of {len(runs)} seeds could not go on; {others}.\n{reasons}")
    return table


def _devices(num_seeds: int, num_devices: int) -> str:
    most = -(-num_seeds // num_devices)
    kind = make_mesh().devices.flat[0].device_kind
    return f"Devices: {num_devices} x {kind}; {num_seeds} seeds, up to {most} on each, every batch on one device"


def _dry_run(config: RunConfig, dataset: Dataset, compute: ComputeConfig, num_seeds: int, num_devices: int) -> str:
    mesh, most = make_mesh([make_mesh().devices.flat[0]]), -(-num_seeds // num_devices)
    found = forecast(config, dataset, mesh, compute)
    largest = max(stage.state + (stage.program or 0) for stage in found.stages)
    return (
        f"{format_forecast(found)}\nThat is one seed. Of {num_seeds} seeds a device has {most}: {most} times the state "
        f"and the program, {most * largest / 1e6:,.1f} MB at most, and the data once.\n"
    )
