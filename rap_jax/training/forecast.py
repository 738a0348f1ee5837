"""Steps, memory and traffic of a run, before it is started.

    print(format_forecast(forecast(config, dataset, mesh, compute)))

State and data are counted from shapes and shardings. The memory that a step needs beside them is XLA's number for the
program, compiled for the devices of the mesh. Those may be of a machine that is not there
(`rap_jax._runtime.topology`); then `format_estimate` shows what the compiled steps say of time and memory.
"""

import contextlib
import math
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.mesh import avoids_collectives, check_batch_size, replicated, row_size, state_shardings
from rap_jax._runtime.text import as_table
from rap_jax._runtime.topology import CHIPS, no_compilation_cache
from rap_jax.config import ComputeConfig, RunConfig, Stage
from rap_jax.data import Dataset
from rap_jax.data.batches import BatchInputs
from rap_jax.evaluation import selection
from rap_jax.models import Model, num_params
from rap_jax.models.model import Weights
from rap_jax.pruning.specs import Specs
from rap_jax.training.estimate import StepEstimate, count_kinds, estimate_step, num_passes, num_step_passes, step_flops
from rap_jax.training.optimizer import StagePlan, plan_stages, specs_from_config, stage_optimizer
from rap_jax.training.sharded_step import batch_mesh, step_as_program, step_functions
from rap_jax.training.start import make_model
from rap_jax.training.state import StageState, TrainState, has_teacher, stage_init, step_keys
from rap_jax.training.step import StepFunctions


class StageForecast(NamedTuple):
    """A stage. Bytes are those of the device that has most."""

    stage: Stage
    num_steps: int
    images: int  # of each step, on one device
    state: int  # bytes of weights, optimizer, z, u, masks and the kept model
    program: int | None  # bytes that a step needs beside state and data; None where it is several programs
    sent: int  # bytes that a device sends in a step, by rings: gradients, and sharded weights
    estimate: StepEstimate | None = None
    validation: float = 0.0  # work of validation after the epochs, in steps


class Forecast(NamedTuple):
    """A run."""

    num_params: int
    data: int  # bytes of images and labels on a device
    stages: tuple[StageForecast, ...]


def forecast(
    config: RunConfig, dataset: Dataset, mesh: Mesh, compute: ComputeConfig, *, with_estimate: bool = False
) -> Forecast:
    """Of a run with random weights; nothing is trained.

    Under a budget that follows from the weights the ADMM stage may have less state: layers that stay whole have none.

    Args:
      with_estimate: reads time and collectives out of the compiled steps as well.

    Raises:
      ValueError: settings that cannot work.
    """
    check_batch_size(config.batch_size, mesh)
    model = make_model(config, dataset, compute, mesh)
    weights: Weights = jax.eval_shape(model.init, jax.random.key(0))
    specs = specs_from_config(config.prune, weights.params, output_layer=model.output_layer)
    splits = (dataset.validation, dataset.test, *(() if compute.stream_data else (dataset.train,)))
    size = row_size(model.input_shape) + np.dtype(np.int32).itemsize
    data = sum(size * len(split.labels) for split in splits)
    num_examples = len(dataset.train.labels)
    plans = plan_stages(config, num_examples)
    with no_compilation_cache() if with_estimate else contextlib.nullcontext():
        found = [_stage(plan, config, model, weights, specs, mesh, num_examples, with_estimate) for plan in plans]
    work = [_validation(plan, config, len(dataset.validation.labels)) for plan in plans]
    stages = tuple(stage._replace(validation=steps) for stage, steps in zip(found, work, strict=True))
    return Forecast(num_params(weights.params), data, stages)


def format_forecast(found: Forecast) -> str:
    """As a table."""
    rows = [
        (
            stage.stage,
            f"{stage.num_steps:,}",
            str(stage.images),
            _megabytes(stage.state),
            "-" if stage.program is None else _megabytes(stage.program),
            _megabytes(stage.sent),
        )
        for stage in found.stages
    ]
    header = ("Stage", "Steps", "Images", "State, MB", "Program, MB", "Sent, MB")
    title = f"{found.num_params:,} parameters; {_megabytes(found.data)} MB of data on each device."
    notes = (
        "Images, memory and what is sent: of one device, in one step. The retrain may take less: removed filters go."
    )
    return f"{title}\n\n{as_table(header, rows)}\n\n{notes}\n"


def format_estimate(found: Forecast, mesh: Mesh) -> str:
    """As a table: what the compiled steps say of a machine that is not there."""
    device = mesh.devices.flat[0]
    chip = CHIPS.get(device.device_kind)
    rows = [_estimate_row(stage, mesh) for stage in found.stages if stage.estimate is not None]
    header = ("Stage", "Steps", "Memory, MB", "Sent, MB", "Collectives", "Cost model, ms", "Roofline, ms", "Images/s",
              "Share of peak", "Seconds")  # fmt: skip
    title = f"Compiled and estimated for {mesh.size} x {device.device_kind}, not run. {found.num_params:,} parameters."
    has = "" if chip is None else f" of {chip.memory / 1e6:,.0f} that it has"
    notes = (
        f"Of one device, in one step: memory{has}, what is sent, collectives. Images/s: of all devices, by the cost "
        "model. Seconds: all steps, and validation after each epoch as so many steps as it has passes through the "
        "network; without compiling, checkpoints and the last evaluation. rap_jax/training/estimate.py says how."
    )
    return f"{title}\n\n{as_table(header, rows)}\n\n{notes}\n"


def _estimate_row(stage: StageForecast, mesh: Mesh) -> tuple[str, ...]:
    step = stage.estimate
    assert step is not None
    kinds = ", ".join(f"{number} {kind}" for kind, number in count_kinds(step.collectives).items()) or "none"
    milliseconds = lambda time: "-" if time is None else f"{1e3 * time:,.3f}"
    speed = seconds = share = "-"
    if step.cost_model is not None and step.peak_share is not None:
        speed = f"{stage.images * mesh.size / step.cost_model:,.0f}"
        seconds = f"{(stage.num_steps + stage.validation) * step.cost_model:,.1f}"
        share = f"{step.peak_share:.1%}"
    memory, sent = _megabytes(step.memory), _megabytes(round(step.sent))
    return (stage.stage, f"{stage.num_steps:,}", memory, sent, kinds, milliseconds(step.cost_model),
            milliseconds(step.roofline), speed, share, seconds)  # fmt: skip


def _stage(
    plan: StagePlan,
    config: RunConfig,
    model: Model,
    weights: Weights,
    specs: Specs,
    mesh: Mesh,
    num_examples: int,
    with_estimate: bool,
) -> StageForecast:
    make_tx = stage_optimizer(plan, config, weights.params, specs, mesh)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.bool_), weights.params)
    distills = has_teacher(config.train, plan.stage)
    is_cut = plan.stage == "retrain" or (plan.stage == "admm" and config.prune.cuts_first)
    masks = shapes if is_cut and specs else None
    state: StageState = jax.eval_shape(
        stage_init(make_tx, config, model.input_shape, plan.stage), weights, masks, weights if distills else ()
    )
    shardings = state_shardings(state, mesh)
    sizes = jax.tree.map(lambda leaf, place: _bytes(place.shard_shape(leaf.shape), leaf.dtype), state, shardings)
    images = config.batch_size // batch_mesh(config.train, mesh).size
    program = estimate = None
    if not avoids_collectives(mesh):
        teacher = model if distills else None
        functions = step_functions(model, make_tx(masks), config.train, plan, mesh, teacher=teacher)
        step = compile_step(functions, state.train, shardings.train, mesh, config.batch_size, num_examples)
        analysis = step.memory_analysis()
        program = None if analysis is None else int(analysis.temp_size_in_bytes)
        if with_estimate:
            estimate = estimate_step(step, mesh, step_flops(model, weights, config.train, images, plan.stage))
    sent = _sent(weights.params, mesh)
    return StageForecast(plan.stage, plan.num_steps, images, sum(jax.tree.leaves(sizes)), program, sent, estimate)


def compile_step(
    functions: StepFunctions, state: TrainState, shardings: Any, mesh: Mesh, batch_size: int, num_examples: int
) -> jax.stages.Compiled:
    """A training step, compiled for the devices of the mesh, which need not be there."""
    like: Any = lambda shape, dtype, place=None: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    train = jax.tree.map(lambda leaf, place: like(leaf.shape, leaf.dtype, place), state, shardings)
    images = like((num_examples, row_size(functions.model.input_shape)), np.uint8, replicated(mesh))
    labels = like((num_examples,), np.int32, replicated(mesh))
    inputs = BatchInputs(images, labels, like((batch_size,), np.int32))
    keys = jax.eval_shape(lambda: step_keys(0, "pretrain"))
    return step_as_program(functions, mesh).lower(train, inputs, keys, False).compile()


def _validation(plan: StagePlan, config: RunConfig, num_images: int) -> float:
    """Passes through the network in validation, one clean and those of the attack, over those of a step."""
    passes = num_passes(config.select_attack) + 1
    if config.selection == "strong":
        num_images, passes = min(num_images, selection.NUM_IMAGES), selection.NUM_PASSES
    of_a_step = config.batch_size * num_step_passes(config.train, plan.stage)
    return plan.num_steps / plan.steps_per_epoch * num_images * passes / of_a_step


def _sent(params: chex.ArrayTree, mesh: Mesh) -> int:
    """Of N devices in a ring each sends 2 (N - 1) / N of what is summed, and (N - 1) / N of what is gathered."""
    if avoids_collectives(mesh) or mesh.size == 1:
        return 0
    total = cut = 0
    for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(state_shardings(params, mesh)), strict=True):
        total += _bytes(leaf.shape, leaf.dtype)
        cut += _bytes(leaf.shape, leaf.dtype) - _bytes(place.shard_shape(leaf.shape), leaf.dtype)
    return round(2 * (mesh.size - 1) / mesh.size * total) + cut


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f}"
