"""A run from its config to its results: pretrain, ADMM, cut, masked retrain, and the test set once at the end.

    pretrain (adversarial)  ->  best on validation
    admm (adversarial + penalty, or another method of pruning)  ->  last weights
    cut: projected on the sparsity sets
    retrain (adversarial, pruned weights held at zero)  ->  best on validation  ->  test

With `merge_duplicates` filters that are multiples of each other are merged before ADMM and before every cut.

A stage of 0 epochs is left out, which makes the paper's baselines: without `admm` it is post-pruning (Table A1),
without `admm` and `retrain` one-shot magnitude pruning, and with an empty sparsity a dense network.

Every finished stage and the test write their result to stages/<stage>.json. A run that is called again does what is
missing; a finished run returns its results and does not read the test set again. The cost of the network is measured
last.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
from jax.sharding import Mesh

from rap_jax._runtime.integrity import digest
from rap_jax._runtime.interrupt import Interrupt, catch_signals
from rap_jax._runtime.mesh import DeviceSplit, check_batch_size, first_device_sharding, make_mesh, put_split
from rap_jax._runtime.processes import is_first, num_processes, require_same
from rap_jax.compaction.cost import measure_cost
from rap_jax.compaction.cut import cut, masks_of_cut
from rap_jax.compaction.merge import merge_duplicates
from rap_jax.config import AttackConfig, ComputeConfig, OutputConfig, RunConfig, Stage, require
from rap_jax.data import Dataset, Split
from rap_jax.evaluation.accuracy import Evaluator, SplitEvaluator, make_evaluator
from rap_jax.evaluation.selection import make_strong_evaluator
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.pruning import specs as specs_lib
from rap_jax.pruning.masks import both, count_sparsity
from rap_jax.pruning.specs import Specs
from rap_jax.runs.folder import open_run_folder
from rap_jax.runs.network import save_network
from rap_jax.training.input import TrainInput, make_input
from rap_jax.training.optimizer import StagePlan, plan_stages, specs_from_config, specs_of_weights
from rap_jax.training.provenance import describe, identity, settings_of
from rap_jax.training.report import write_report
from rap_jax.training.stage import run_alone, run_compact_stage, run_stage
from rap_jax.training.start import Start, make_model, make_start
from rap_jax.training.state import has_teacher, stream_key
from rap_jax.training.task import StageContext, StageResult, Teacher, Training

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
    """Runs, or resumes, a run in `out_dir` and returns the content of results.json.

    Args:
      config: all settings that the numbers depend on.
      dataset: its images; the folder is checked against its name and content hash.
      compute: the implementation of convolutions and the sharding; the devices are those that JAX has started with.
      command: the command line of this run, for the report.
      flags: the run as a flagfile, written to run.flags if not empty.
      devices: those to run on, or None for all; a run may be resumed on another number of them.

    Raises:
      ValueError: bad settings, settings that differ between the processes of the run, a folder of another run, NaN,
        damaged checkpoints. The message says what to do.
      Interrupted: a signal came; the state is saved.
    """
    ways = {name: value for name, value in dataclasses.asdict(compute).items() if name != "num_cpu_devices"}
    others = {"output": dataclasses.asdict(output), "compute": ways, "out_dir": str(out_dir)}
    require_same(settings_of(config, dataset) | others)
    mesh = make_mesh(devices, num_model_shards=compute.num_model_shards)
    check_batch_size(config.batch_size, mesh)
    parts = make_parts(config, dataset, mesh, output=output, compute=compute, command=command)
    return run_alone(run_training(OneRun(config, dataset, out_dir, flags), parts))


class OneRun(NamedTuple):
    """A run and its folder."""

    config: RunConfig
    dataset: Dataset
    out_dir: Path
    flags: str = ""  # the run as a flagfile


@dataclasses.dataclass(frozen=True)
class RunParts:
    """What runs that differ by their seed have in common: devices, network, programs, the images on the devices."""

    mesh: Mesh
    output: OutputConfig
    model: Model
    remake: Callable[..., Model]
    evaluator: Callable[[Model, AttackConfig], Evaluator]
    selector: Callable[[Model], Evaluator]
    put_train: Callable[[Split], TrainInput]
    put_test: Callable[[Split], DeviceSplit]
    signals: Callable[[], AbstractContextManager[Interrupt]]
    command: str = ""


def make_parts(
    config: RunConfig, dataset: Dataset, mesh: Mesh, *, output: OutputConfig, compute: ComputeConfig, command: str
) -> RunParts:
    """The parts of a run alone."""
    model = make_model(config, dataset, compute, mesh)

    @functools.cache
    def evaluator(model: Model, attack: AttackConfig) -> Evaluator:
        return make_evaluator(model, attack, mesh, batch_size=config.eval_batch_size)

    @functools.cache
    def selector(model: Model) -> Evaluator:
        strong = config.selection == "strong"
        return (make_strong_evaluator(model, config.select_attack, mesh) if strong
                else evaluator(model, config.select_attack))  # fmt: skip

    put_train: Callable[[Split], TrainInput] = lambda split: make_input(split, mesh)
    put_test: Callable[[Split], DeviceSplit] = lambda split: put_split(*split, mesh)
    remake = functools.cache(model.replace)
    return RunParts(mesh, output, model, remake, evaluator, selector, put_train, put_test, catch_signals, command)


def run_training(run: OneRun, parts: RunParts) -> Training[dict[str, Any]]:
    """A whole run, which asks for the training of each stage; returns the content of results.json."""
    config, dataset, out_dir, flags = run
    model, mesh = parts.model, parts.mesh
    start = make_start(config, dataset, model, mesh)
    specs = specs_from_config(config.prune, start.weights.params, output_layer=model.output_layer)
    plans = plan_stages(config, len(dataset.train.labels))
    _check(config, specs, model.input_shape)
    opened = open_run_folder(out_dir, identity(config, dataset, start))
    with opened.with_event_files() if parts.output.tensorboard else opened as folder:
        if flags:
            folder.write("run.flags", flags)
        if folder.read_json("results.json", _RESULT_KEYS) is None:
            about = describe(config, dataset, start, mesh) | {"command": parts.command, "run_dir": str(out_dir)}
            with parts.signals() as interrupt:
                train, validation = parts.put_train(dataset.train), put_split(*dataset.validation, mesh)
                programs = (parts.evaluator, parts.selector, parts.remake)
                context = StageContext(
                    config, parts.output, model, mesh, train, validation, *programs, specs, folder, interrupt
                )
                found = yield from _train_and_test(plans, context, start, parts.put_test(dataset.test))
            folder.write_json("results.json", about | found)
        if is_first() and not (folder.path / "report.md").exists():
            write_report(folder.path)
        results = folder.read_json("results.json")
    assert results is not None
    return results


def _check(config: RunConfig, specs: Specs, input_shape: tuple[int, ...]) -> None:
    """Refuses a penalty with nothing to pull, and a crop that may show nothing of an image."""
    hint = "a ratio above 0 for some layer, or --admm_epochs=0"
    require(bool(specs) or config.admm.num_epochs == 0, "sparsity", config.prune.sparsity, hint)
    padding, smaller = config.train.augment.crop_padding, min(input_shape[:2])
    require(padding < smaller, "crop_padding", padding, f"fewer pixels than the smaller side of the images, {smaller}")


def _train_and_test(
    plans: Sequence[StagePlan], context: StageContext, start: Start, test_split: DeviceSplit
) -> Training[dict[str, Any]]:
    """The accuracies, the sparsity, the times and the cost in results.json."""
    config = context.config
    report = context.evaluator(context.model, config.report_attack)
    evaluator = SplitEvaluator(report, context.validation, stream_key(config.seed, "report"), context.interrupt)
    final, stages = yield from _run_stages(plans, context, evaluator, start.weights)
    tested = _test(context, evaluator._replace(split=test_split), final)
    save_network(context.folder.path, final, initial=start.initial)
    seconds: dict[str, float] = {plan.stage: stages[plan.stage]["seconds"] for plan in plans}
    seconds["validation"] = sum(stage["validation_seconds"] for stage in stages.values())
    seconds["test"] = tested["seconds"]
    found = {
        "stages": stages,
        "test": tested["test"],
        "sparsity": count_sparsity(final.params),
        "seconds": seconds | {"total": sum(seconds.values())},
    }
    return found | ({"cost": _cost(context, final)} if context.output.measure_cost and is_first() else {})


def _test(context: StageContext, evaluator: SplitEvaluator, final: Weights) -> dict[str, Any]:
    """The result on the test set, in a file of its own, so that one network is tested once."""
    network = digest(final)
    found = context.folder.read_json("stages/test.json", ("test", "seconds", "network"))
    if found is not None and found["network"] == network:
        return found
    began = time.monotonic()
    test = evaluator(f"{context.config.name} test", final).to_json()
    record = {"test": test, "seconds": time.monotonic() - began, "network": network}
    context.folder.write_json("stages/test.json", record)
    return record


def _cost(context: StageContext, final: Weights) -> dict[str, Any]:
    """On the first device alone. A signal stops it, unless other processes wait for it; all else is saved by then."""
    where = "while measuring what the network costs"
    stop = lambda: None if num_processes() > 1 else context.interrupt.stop_if_requested(where)
    return measure_cost(context.model, jax.device_get(final), device=context.mesh.devices.flat[0], between=stop)


def _run_stages(
    plans: Sequence[StagePlan], context: StageContext, evaluator: SplitEvaluator, start: Weights
) -> Training[tuple[Weights, dict[str, Any]]]:
    """The final weights and the record of each stage; weights that come from another run are a stage of their own.

    The budget of the layers follows from the weights before ADMM, or before the cut if there is no ADMM.
    """
    weights, stages = start, dict[str, Any]()
    context = _with_budget(context, start)
    if context.config.start.run_dir is not None:
        stages["start"] = _record(context, evaluator, "start", StageResult(start, 0, 0.0))
    for plan in plans:
        weights = weights if plan.stage == "pretrain" else _merged(context, weights)
        if has_teacher(context.config.train, plan.stage) and context.teacher is None:
            context = dataclasses.replace(context, teacher=Teacher(context.model, weights))
        masks, is_retrain = _masks(context, plan.stage, weights), plan.stage == "retrain"
        first = _cut(context, weights) if _begins_with_cut(context, plan.stage) else weights
        run = run_compact_stage if is_retrain and context.config.small_retrain else run_stage
        result = yield from run(plan, context, first, masks)
        weights = result.weights
        context = _with_budget(context, weights) if plan.stage == "pretrain" else context
        stages[plan.stage] = _record(context, evaluator, plan.stage, result)
    return weights if "retrain" in stages else _merged_and_cut(context, weights), stages


def _with_budget(context: StageContext, weights: Weights) -> StageContext:
    """With the sparsity of each layer for these weights; the same weights give the same ones in a resumed run."""
    specs = specs_of_weights(context.config.prune, context.model, _merged(context, weights))
    return dataclasses.replace(context, specs=specs)


def _merged(context: StageContext, weights: Weights) -> Weights:
    """The weights, with duplicate filters of the layers that are pruned merged if the config says so."""
    if not context.config.prune.merge_duplicates:
        return weights
    # Also those that a budget leaves whole.
    pruned = specs_from_config(context.config.prune, weights.params, output_layer=context.model.output_layer)
    layers = {name.rpartition("/")[0] for name in pruned}
    params = merge_duplicates(context.model.wiring, weights.params, layers)
    return weights._replace(params=jax.device_put(params, first_device_sharding(context.mesh)))


def _merged_and_cut(context: StageContext, weights: Weights) -> Weights:
    return _cut(context, _merged(context, weights))


def _cut(context: StageContext, weights: Weights) -> Weights:
    return cut(context.specs, context.model, weights, _cut_key(context))


def _cut_key(context: StageContext) -> jax.Array | None:
    """Of a cut at random; zeros go first there, so that a network that is cut again keeps what it has."""
    return stream_key(context.config.seed, "prune") if context.config.prune.method == "random" else None


def _begins_with_cut(context: StageContext, stage: Stage) -> bool:
    return stage == "retrain" or (stage == "admm" and context.config.prune.cuts_first)


def _masks(context: StageContext, stage: Stage, weights: Weights) -> chex.ArrayTree | None:
    """Masks of a stage: the zeros of the start of the run stay zero, and in the retrain those of the cut as well.

    A method other than ADMM ends with zeros, which stay zero too.

    `weights` are those before the cut: after it all removed weights have the same score, and a global budget would
    distribute its last places anew.
    """
    config = context.config
    cuts = bool(context.specs) and _begins_with_cut(context, stage)
    masks = masks_of_cut(context.specs, context.model, weights.params, _cut_key(context)) if cuts else None
    is_pruned = stage == "retrain" and config.prune.method != "admm" and config.admm.num_epochs > 0
    if config.start.run_dir is None and not is_pruned:
        return masks
    # Each stage keeps them, so the zeros of its start are still those of the run's start.
    zeros = specs_lib.masks_of_zeros(weights.params)
    return zeros if masks is None else both(masks, zeros)


def _record(context: StageContext, evaluator: SplitEvaluator, name: str, result: StageResult) -> dict[str, Any]:
    """The result of a finished stage; evaluated once, then read from its file."""
    path = f"stages/{name}.json"
    found = context.folder.read_json(path, ("validation", "step", "seconds", "sparsity", "validation_seconds"))
    if found is not None:
        return found
    label = f"{context.config.name} {name} validation"
    began = time.monotonic()
    record: dict[str, Any] = {
        "validation": evaluator(label, result.weights).to_json(),
        "step": result.step,
        "seconds": result.seconds,
        "sparsity": count_sparsity(result.weights.params),
    }
    if context.specs and name != "retrain":
        record["cut"] = evaluator(f"{label} after a cut", _merged_and_cut(context, result.weights)).to_json()
    record["validation_seconds"] = time.monotonic() - began
    context.folder.write_json(path, record)
    return record
