"""A run from its config to its results: pretrain, ADMM, cut, masked retrain, and the test set once at the end.

    pretrain (adversarial)  ->  best on validation
    admm (adversarial + penalty)  ->  last weights
    cut: projected on the sparsity sets
    retrain (adversarial, pruned weights held at zero)  ->  best on validation  ->  test

A stage of 0 epochs is left out, which makes the paper's baselines: without `admm` it is post-pruning (Table A1),
without `admm` and `retrain` one-shot magnitude pruning, and with an empty sparsity a dense network.

Every finished stage and the test leave their result in stages/<stage>.json, so that a run that is called again only
does what is missing; a finished run returns its results and reads the test set no second time. What the network costs
is measured last."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import chex
import jax

from rap_jax._runtime.integrity import digest
from rap_jax._runtime.interrupt import catch_signals
from rap_jax._runtime.mesh import DeviceSplit, check_batch_size, make_mesh, put_split
from rap_jax._runtime.processes import is_first, num_processes, require_same
from rap_jax.compaction.cost import measure_cost
from rap_jax.compaction.cut import cut, masks_of_cut
from rap_jax.config import STAGES, ComputeConfig, OutputConfig, RunConfig, Stage, require
from rap_jax.data import Dataset
from rap_jax.evaluation.accuracy import SplitEvaluator, make_evaluator
from rap_jax.models import create_model
from rap_jax.models.model import Weights
from rap_jax.pruning import specs as specs_lib
from rap_jax.pruning.masks import both, count_sparsity
from rap_jax.pruning.specs import Specs
from rap_jax.runs.folder import open_run_folder
from rap_jax.runs.network import save_network
from rap_jax.training.compact_stage import run_small_stage
from rap_jax.training.input import make_input
from rap_jax.training.optimizer import specs_from_config, stage_learning_rate, stage_length
from rap_jax.training.provenance import describe, identity, settings_of
from rap_jax.training.report import write_report
from rap_jax.training.stage import Outcome, Setup, run_stage
from rap_jax.training.start import Start, make_start
from rap_jax.training.state import stream_key

_RESULT_KEYS = ("name", "dataset", "data", "seed", "model", "start", "stages", "test", "sparsity", "seconds")


def run(
    config: RunConfig,
    dataset: Dataset,
    out_dir: Path,
    *,
    output: OutputConfig = OutputConfig(),  # noqa: B008  frozen
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008  frozen
    command: str = "",
    flags: str = "",
    devices: list[jax.Device] | None = None,
) -> dict[str, Any]:
    """Runs, or goes on with, a run in `out_dir` and returns what results.json holds.

    Args:
      config: everything that decides the numbers.
      dataset: its images; name and content hash become part of what the folder is checked against.
      compute: how convolutions are computed; the devices are those that JAX has started with.
      command: how to start this run again, for the report.
      flags: the run as a flagfile, written to run.flags if not empty.
      devices: those to run on, or None for all; a run may go on with another number of them.

    Raises:
      ValueError: bad settings, others than in another process of the run, a folder that does not fit, NaN, damaged
        checkpoints; says what to do.
      Interrupted: a signal came; the state is saved.
    """
    ways = {name: value for name, value in dataclasses.asdict(compute).items() if name != "num_cpu_devices"}
    others = {"output": dataclasses.asdict(output), "compute": ways, "out_dir": str(out_dir)}
    require_same(settings_of(config, dataset) | others)
    mesh = make_mesh(devices, num_model_shards=compute.num_model_shards)
    check_batch_size(config.batch_size, mesh)
    model = create_model(
        config.model,
        input_shape=dataset.train.images.shape[1:],
        num_classes=dataset.num_classes,
        implementation=compute.implementation,
    )
    start = make_start(config, dataset, model, mesh)
    specs = specs_from_config(config.prune, start.weights.params, output_layer=model.output_layer)
    _check_stages(config, specs, len(dataset.train.labels))
    _check_crop(config, model.input_shape)
    with open_run_folder(out_dir, identity(config, dataset, start)) as folder:
        if flags:
            folder.write("run.flags", flags)
        if folder.read_json("results.json", _RESULT_KEYS) is None:
            about = describe(config, dataset, start, mesh) | {"command": command, "run_dir": str(out_dir)}
            with catch_signals() as interrupt:
                put = lambda split: put_split(split.images, split.labels, mesh)
                setup = Setup(
                    config=config,
                    output=output,
                    model=model,
                    compute=compute,
                    mesh=mesh,
                    train=make_input(dataset.train, mesh),
                    validation=put(dataset.validation),
                    select=make_evaluator(model, config.select_attack, mesh, batch_size=config.eval_batch_size),
                    specs=specs,
                    folder=folder,
                    interrupt=interrupt,
                )
                found = _train_and_test(setup, start, put(dataset.test))
            folder.write_json("results.json", about | found)
        if is_first() and not (folder.path / "report.md").exists():
            write_report(folder.path)
        results = folder.read_json("results.json")
    assert results is not None
    return results


def _check_crop(config: RunConfig, input_shape: tuple[int, ...]) -> None:
    padding, smaller = config.train.augment.crop_padding, min(input_shape[:2])
    require(padding < smaller, "crop_padding", padding, f"fewer pixels than the smaller side of the images, {smaller}")


def _check_stages(config: RunConfig, specs: Specs, num_examples: int) -> None:
    """Refuses, before anything is trained, lengths that cannot work, and a penalty with nothing to pull."""
    for stage in _stages(config):
        stage_learning_rate(config, stage, stage_length(config, stage, num_examples))
    hint = "a ratio above 0 for some layer, or --admm_epochs=0"
    require(bool(specs) or config.admm.num_epochs == 0, "sparsity", config.prune.sparsity, hint)


def _stages(config: RunConfig) -> list[Stage]:
    return [stage for stage in STAGES if config.stage(stage).num_epochs > 0]


def _train_and_test(setup: Setup, start: Start, test_split: DeviceSplit) -> dict[str, Any]:
    """The part of results.json that says what was found."""
    config = setup.config
    report = make_evaluator(setup.model, config.report_attack, setup.mesh, batch_size=config.eval_batch_size)
    evaluator = SplitEvaluator(report, setup.validation, stream_key(config.seed, "report"), setup.interrupt)
    final, stages = _run_stages(setup, evaluator, start.weights)
    tested = _test(setup, evaluator._replace(split=test_split), final)
    save_network(setup.folder.path, final, initial=start.initial)
    seconds: dict[str, float] = {stage: stages[stage]["seconds"] for stage in _stages(config)}
    seconds["validation"] = sum(stage["validation_seconds"] for stage in stages.values())
    seconds["test"] = tested["seconds"]
    found = {
        "stages": stages,
        "test": tested["test"],
        "sparsity": count_sparsity(final.params),
        "seconds": seconds | {"total": sum(seconds.values())},
    }
    return found | ({"cost": _cost(setup, final)} if setup.output.measure_cost and is_first() else {})


def _test(setup: Setup, evaluator: SplitEvaluator, final: Weights) -> dict[str, Any]:
    """The result on the test set, in a file of its own: one network is tested once, whatever happens after it."""
    network = digest(final)
    found = setup.folder.read_json("stages/test.json", ("test", "seconds", "network"))
    if found is not None and found["network"] == network:
        return found
    began = time.monotonic()
    test = evaluator(f"{setup.config.name} test", final).to_json()
    record = {"test": test, "seconds": time.monotonic() - began, "network": network}
    setup.folder.write_json("stages/test.json", record)
    return record


def _cost(setup: Setup, final: Weights) -> dict[str, Any]:
    """On the first device alone. A signal stops it, unless other processes wait for it; all else is saved by then."""
    where = "while measuring what the network costs"
    stop = lambda: None if num_processes() > 1 else setup.interrupt.stop_if_requested(where)
    return measure_cost(setup.model, jax.device_get(final), device=setup.mesh.devices.flat[0], between=stop)


def _run_stages(setup: Setup, evaluator: SplitEvaluator, start: Weights) -> tuple[Weights, dict[str, Any]]:
    """The final weights and the record of each stage; weights that come from another run are a stage of their own."""
    weights, stages = start, dict[str, Any]()
    if setup.config.start.run_dir is not None:
        stages["start"] = _record(setup, evaluator, "start", Outcome(start, 0, 0.0))
    for stage in _stages(setup.config):
        masks = _masks(setup, stage, weights)
        run = run_small_stage if stage == "retrain" and setup.config.small_retrain else run_stage
        outcome = run(stage, setup, cut(setup.specs, setup.model, weights) if stage == "retrain" else weights, masks)
        weights = outcome.weights
        stages[stage] = _record(setup, evaluator, stage, outcome)
    return weights if "retrain" in stages else cut(setup.specs, setup.model, weights), stages


def _masks(setup: Setup, stage: Stage, weights: Weights) -> chex.ArrayTree | None:
    """What has to stay zero in a stage: what was zero when the run began, and in the retrain what the cut takes.

    `weights` are those before the cut: afterwards all that is gone has one score, and a global budget would share its
    last bit of room out anew.
    """
    masks = masks_of_cut(setup.specs, setup.model, weights.params) if stage == "retrain" and setup.specs else None
    if setup.config.start.run_dir is None:
        return masks
    # Each stage keeps them, so the zeros of its start are still those of the run's start.
    zeros = specs_lib.masks_of_zeros(weights.params)
    return zeros if masks is None else both(masks, zeros)


def _record(setup: Setup, evaluator: SplitEvaluator, name: str, outcome: Outcome) -> dict[str, Any]:
    """The result of a finished stage; evaluated once, then read from its file."""
    path = f"stages/{name}.json"
    found = setup.folder.read_json(path, ("validation", "step", "seconds", "sparsity", "validation_seconds"))
    if found is not None:
        return found
    label = f"{setup.config.name} {name} validation"
    began = time.monotonic()
    record: dict[str, Any] = {
        "validation": evaluator(label, outcome.weights).to_json(),
        "step": outcome.step,
        "seconds": outcome.seconds,
        "sparsity": count_sparsity(outcome.weights.params),
    }
    if setup.specs and name != "retrain":
        record["cut"] = evaluator(f"{label} after a cut", cut(setup.specs, setup.model, outcome.weights)).to_json()
    record["validation_seconds"] = time.monotonic() - began
    setup.folder.write_json(path, record)
    return record
