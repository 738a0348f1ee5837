"""Steps, memory and traffic of a run, before it is started.

    print(format_forecast(forecast(config, dataset, mesh, compute)))

State and data are counted from shapes and shardings. The memory that a step needs beside them is XLA's number for the
program, compiled for the devices that are there.
"""

import math
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.mesh import avoids_collectives, check_batch_size, replicated, state_shardings
from rap_jax._runtime.text import as_table
from rap_jax.config import ComputeConfig, RunConfig, Stage
from rap_jax.data import Dataset
from rap_jax.data.batches import BatchInputs
from rap_jax.models import Model, num_params
from rap_jax.models.model import Weights
from rap_jax.pruning.specs import Specs
from rap_jax.training.optimizer import StagePlan, plan_stages, specs_from_config, stage_optimizer
from rap_jax.training.sharded_step import batch_mesh, step_as_program, step_functions
from rap_jax.training.start import make_model
from rap_jax.training.state import StageState, TrainState, stage_init, step_keys
from rap_jax.training.step import StepFunctions


class StageForecast(NamedTuple):
    """A stage. Bytes are those of the device that has most."""

    stage: Stage
    num_steps: int
    images: int  # of each step, on one device
    state: int  # bytes of weights, optimizer, z, u, masks and the kept model
    program: int | None  # bytes that a step needs beside state and data; None where it is several programs
    sent: int  # bytes that a device sends in a step, by rings: gradients, and sharded weights


class Forecast(NamedTuple):
    """A run."""

    num_params: int
    data: int  # bytes of images and labels on a device
    stages: tuple[StageForecast, ...]


def forecast(config: RunConfig, dataset: Dataset, mesh: Mesh, compute: ComputeConfig) -> Forecast:
    """Of a run with random weights; nothing is trained.

    Raises:
      ValueError: settings that cannot work.
    """
    check_batch_size(config.batch_size, mesh)
    model = make_model(config, dataset, compute)
    weights: Weights = jax.eval_shape(model.init, jax.random.key(0))
    specs = specs_from_config(config.prune, weights.params, output_layer=model.output_layer)
    splits = (dataset.validation, dataset.test, *(() if compute.stream_data else (dataset.train,)))
    data = sum(_bytes(array.shape, array.dtype) for split in splits for array in split)
    num_examples = len(dataset.train.labels)
    plans = plan_stages(config, num_examples)
    stages = tuple(_stage(plan, config, model, weights, specs, mesh, num_examples) for plan in plans)
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


def _stage(
    plan: StagePlan, config: RunConfig, model: Model, weights: Weights, specs: Specs, mesh: Mesh, num_examples: int
) -> StageForecast:
    make_tx = stage_optimizer(plan, config, weights.params, specs, mesh)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.bool_), weights.params)
    masks = shapes if plan.stage == "retrain" and specs else None
    state: StageState = jax.eval_shape(stage_init(make_tx, config, model.input_shape), weights, masks)
    shardings = state_shardings(state, mesh)
    sizes = jax.tree.map(lambda leaf, place: _bytes(place.shard_shape(leaf.shape), leaf.dtype), state, shardings)
    program = None
    if not avoids_collectives(mesh):
        functions = step_functions(model, make_tx(masks), config.train, plan, mesh)
        program = _program(functions, state.train, shardings.train, mesh, config.batch_size, num_examples)
    images = config.batch_size // batch_mesh(config.train, mesh).size
    sent = _sent(weights.params, mesh)
    return StageForecast(plan.stage, plan.num_steps, images, sum(jax.tree.leaves(sizes)), program, sent)


def _program(
    functions: StepFunctions, state: TrainState, shardings: Any, mesh: Mesh, batch_size: int, num_examples: int
) -> int | None:
    """Bytes that XLA sets aside for one step."""
    like: Any = lambda shape, dtype, place=None: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    train = jax.tree.map(lambda leaf, place: like(leaf.shape, leaf.dtype, place), state, shardings)
    images = like((num_examples, *functions.model.input_shape), np.uint8, replicated(mesh))
    labels = like((num_examples,), np.int32, replicated(mesh))
    inputs, keys = BatchInputs(images, labels, like((batch_size,), np.int32)), step_keys(0, "pretrain")
    step = step_as_program(functions, mesh).lower(train, inputs, keys, False)
    analysis = step.compile().memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


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
