"""A run from its config to its results: pretrain, ADMM, cut, masked retrain, and the test set once at the end.

    pretrain (adversarial)  ->  best on validation
    admm (adversarial + penalty)  ->  last weights  ->  cut: projected on the sparsity sets
    retrain (adversarial, pruned weights held at zero)  ->  best on validation  ->  test

Every finished stage leaves its result in stages/<stage>.json, so that a run that is called again only does what is
missing; a finished run returns its results and reads the test set no second time.
"""

import dataclasses
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from rap_jax import specs as specs_lib
from rap_jax.config import STAGES, OutputConfig, RunConfig, Stage
from rap_jax.data import Dataset
from rap_jax.evaluate import Accuracy, Evaluator, make_evaluator
from rap_jax.folder import open_run_folder, write_atomically
from rap_jax.interrupt import Interrupt, catch_signals
from rap_jax.keys import stream_key
from rap_jax.masking import apply_masks
from rap_jax.models import create_model, num_params
from rap_jax.optimizer import learning_rate_schedule
from rap_jax.progress import Progress
from rap_jax.report import write_report
from rap_jax.sparsity import count_sparsity
from rap_jax.stage import Outcome, Setup, run_stage, stage_length
from rap_jax.state import DeviceSplit, Weights, make_mesh, put_split, replicated

_RESULT_KEYS = ("name", "dataset", "data", "seed", "model", "stages", "test", "sparsity", "seconds")
_PACKAGES = ("rap-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


class _Judge(NamedTuple):
    """The reported attack on one split, with a progress display."""

    evaluate: Evaluator
    split: DeviceSplit
    key: jax.Array
    interrupt: Interrupt

    def __call__(self, label: str, weights: Weights) -> Accuracy:
        with Progress(label, len(self.split.labels), unit="image") as progress:

            def on_batch(done: int, total: int) -> None:
                del total
                progress.update(done)
                self.interrupt.stop_if_requested(f"while evaluating ({label})")

            return self.evaluate(weights.params, weights.batch_stats, self.split, self.key, on_batch)


def run(
    config: RunConfig,
    dataset: Dataset,
    out_dir: Path,
    *,
    output: OutputConfig = OutputConfig(),  # noqa: B008  frozen
    command: str = "",
    flags: str = "",
    devices: list[jax.Device] | None = None,
) -> dict[str, Any]:
    """Runs, or goes on with, a run in `out_dir` and returns what results.json holds.

    Args:
      config: everything that decides the numbers.
      dataset: its images; name and content hash become part of what the folder is checked against.
      command: how to start this run again, for the report.
      flags: the run as a flagfile, written to run.flags if not empty.
      devices: those to run on, or None for all; a run may go on with another number of them.

    Raises:
      ValueError: bad settings, a folder that does not fit, NaN, damaged checkpoints; says what to do.
      Interrupted: a signal came; the state is saved.
    """
    mesh = make_mesh(devices)
    _check_devices(config, mesh.size)
    model = create_model(config.model, input_shape=dataset.train.images.shape[1:], num_classes=dataset.num_classes)
    init = jax.jit(model.init, out_shardings=replicated(mesh))
    start = Weights(*init(stream_key(config.seed, "init")))
    specs = specs_lib.specs_from_config(start.params, config.prune, output_layer=model.output_layer)
    for stage in STAGES:  # lengths that cannot work are refused before anything is trained
        length, optimizer = stage_length(config, stage, len(dataset.train.labels)), config.stage(stage).optimizer
        learning_rate_schedule(optimizer, steps_per_epoch=length.epoch, num_steps=length.stage)
    with open_run_folder(out_dir, identity(config, dataset)) as folder:
        if flags:
            write_atomically(folder.path / "run.flags", flags)
        if folder.read_json("results.json", _RESULT_KEYS) is None:
            about = describe(config, dataset, start, mesh) | {"command": command, "run_dir": str(out_dir)}
            with catch_signals() as interrupt:
                put = lambda split: put_split(split.images, split.labels, mesh)
                setup = Setup(
                    config=config,
                    output=output,
                    model=model,
                    mesh=mesh,
                    train=put(dataset.train),
                    validation=put(dataset.validation),
                    select=make_evaluator(model, config.select_attack, mesh, batch_size=config.eval_batch_size),
                    specs=specs,
                    folder=folder,
                    interrupt=interrupt,
                )
                found = _train_and_test(setup, start, put(dataset.test))
            folder.write_json("results.json", about | found)
        if not (folder.path / "report.md").exists():
            write_report(folder.path)
        results = folder.read_json("results.json")
    assert results is not None
    return results


def identity(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """What must be the same for a run to be gone on with: the config, and the data by content instead of by place."""
    settings = dataclasses.asdict(config)
    for place in ("data_dir", "raw_data_dir", "fallback_dataset", "dataset"):
        del settings["data"][place]
    settings["data"] |= {"name": dataset.name, "sha256": dataset.sha256}
    return settings


def describe(config: RunConfig, dataset: Dataset, start: Weights, mesh: Mesh) -> dict[str, Any]:
    """The part of results.json that says what was run, on what."""
    sizes = {name: len(getattr(dataset, name).labels) for name in ("train", "validation", "test")}
    return {
        "name": config.name,
        "dataset": dataset.name,
        "data": sizes | {"sha256": dataset.sha256},
        "seed": config.seed,
        "model": dataclasses.asdict(config.model) | {"num_params": num_params(start.params)},
        "config": dataclasses.asdict(config),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({mesh.devices.flat[0].platform})",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its sources without being installed
        return "not installed"


def _check_devices(config: RunConfig, num_devices: int) -> None:
    if config.batch_size % num_devices:
        raise ValueError(
            f"batch_size is {config.batch_size}; expected a multiple of the {num_devices} devices, since each batch "
            f"is split over them."
        )


def _train_and_test(setup: Setup, start: Weights, test_split: DeviceSplit) -> dict[str, Any]:
    """The part of results.json that says what was found."""
    config = setup.config
    report = make_evaluator(setup.model, config.report_attack, setup.mesh, batch_size=config.eval_batch_size)
    judge = _Judge(report, setup.validation, stream_key(config.seed, "report"), setup.interrupt)
    final, stages = _run_stages(setup, judge, start)
    began = time.monotonic()
    test = judge._replace(split=test_split)(f"{config.name} test", final)
    seconds: dict[str, float] = {stage: stages[stage]["seconds"] for stage in STAGES}
    seconds["validation"] = sum(stages[stage]["validation_seconds"] for stage in STAGES)
    seconds["test"] = time.monotonic() - began
    return {
        "stages": stages,
        "test": test.to_json(),
        "sparsity": count_sparsity(final.params),
        "seconds": seconds | {"total": sum(seconds.values())},
    }


def _run_stages(setup: Setup, judge: _Judge, start: Weights) -> tuple[Weights, dict[str, Any]]:
    stages: dict[str, Any] = {}
    pretrained = run_stage("pretrain", setup, start)
    stages["pretrain"] = _record(setup, judge, "pretrain", pretrained, cut=True)
    pulled = run_stage("admm", setup, pretrained.weights)
    stages["admm"] = _record(setup, judge, "admm", pulled, cut=True)
    retrained = run_stage("retrain", setup, _cut(setup, pulled.weights))
    stages["retrain"] = _record(setup, judge, "retrain", retrained, cut=False)
    return retrained.weights, stages


def _cut(setup: Setup, weights: Weights) -> Weights:
    """Pruned for good: what the sparsity sets do not hold becomes zero, with the biases of removed filters."""
    masks = specs_lib.masks_of(setup.specs, weights.params)
    return weights._replace(params=apply_masks(masks, weights.params))


def _record(setup: Setup, judge: _Judge, stage: Stage, outcome: Outcome, *, cut: bool) -> dict[str, Any]:
    """The result of a finished stage; evaluated once, then read from its file."""
    name = f"stages/{stage}.json"
    found = setup.folder.read_json(name, ("validation", "step", "seconds", "sparsity", "validation_seconds"))
    if found is not None:
        return found
    label = f"{setup.config.name} {stage} validation"
    began = time.monotonic()
    record: dict[str, Any] = {
        "validation": judge(label, outcome.weights).to_json(),
        "step": outcome.step,
        "seconds": outcome.seconds,
        "sparsity": count_sparsity(outcome.weights.params),
    }
    if cut:
        record["cut"] = judge(f"{label} after a cut", _cut(setup, outcome.weights)).to_json()
    record["validation_seconds"] = time.monotonic() - began
    setup.folder.write_json(name, record)
    return record
