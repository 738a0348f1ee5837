"""What a run will take, before it is started: steps, memory of each device, and what the devices send each other.

    print(format_forecast(forecast(config, dataset, mesh, compute)))

State and data are counted from shapes and from where they lie; what a program needs beside them is asked of XLA, which
compiles it for the devices that are there."""

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.mesh import DeviceSplit, avoids_collectives, check_batch_size, gather, replicated, state_home
from rap_jax._runtime.text import as_table
from rap_jax.config import STAGES, ComputeConfig, RunConfig, Stage
from rap_jax.data import Dataset
from rap_jax.models import Model, create_model, in_dtype
from rap_jax.models.model import Weights
from rap_jax.pruning.specs import Specs
from rap_jax.training.optimizer import specs_from_config, stage_learning_rate, stage_length, stage_optimizer
from rap_jax.training.sharded_step import batch_mesh, step_as_program
from rap_jax.training.state import StageState, TrainState, init_stage_state
from rap_jax.training.step import StepKeys, StepParts, first_perturbation


class StageForecast(NamedTuple):
    """A stage. Bytes are those of the device that has most.

    Attributes:
      stage, num_steps: of the run.
      images: of each step, on one device.
      state: bytes of weights, optimizer, z, u, masks and the kept model.
      program: bytes that a step needs beside state and data; None where it is several programs.
      sent: bytes that a device sends in a step, by rings: gradients, and weights that lie in pieces.
    """

    stage: Stage
    num_steps: int
    images: int
    state: int
    program: int | None
    sent: int


class Forecast(NamedTuple):
    """Attributes: num_params: of the network; data: bytes of images and labels on a device; stages: in their order."""

    num_params: int
    data: int
    stages: tuple[StageForecast, ...]


def forecast(config: RunConfig, dataset: Dataset, mesh: Mesh, compute: ComputeConfig) -> Forecast:
    """Of a run with random weights; nothing is trained.

    Raises:
      ValueError: settings that cannot work.
    """
    check_batch_size(config.batch_size, mesh)
    model = create_model(
        config.model,
        input_shape=dataset.train.images.shape[1:],
        num_classes=dataset.num_classes,
        implementation=compute.implementation,
    )
    weights: Weights = jax.eval_shape(lambda key: Weights(*model.init(key)), jax.random.key(0))
    specs = specs_from_config(config.prune, weights.params, output_layer=model.output_layer)
    splits = (dataset.validation, dataset.test, *(() if compute.stream_data else (dataset.train,)))
    data = sum(_bytes(array.shape, array.dtype) for split in splits for array in split)
    stages = tuple(
        _stage(stage, config, model, weights, specs, mesh, len(dataset.train.labels))
        for stage in STAGES
        if config.stage(stage).num_epochs
    )
    return Forecast(sum(leaf.size for leaf in jax.tree.leaves(weights.params)), data, stages)


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
    stage: Stage, config: RunConfig, model: Model, weights: Weights, specs: Specs, mesh: Mesh, num_examples: int
) -> StageForecast:
    length = stage_length(config, stage, num_examples)
    make_tx = stage_optimizer(stage, config, length, weights.params, specs, mesh)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.bool_), weights.params)
    masks = shapes if stage == "retrain" and specs else None
    state = _state(config, model, weights, make_tx, masks)
    places = state_home(state, mesh)
    sizes = jax.tree.map(lambda leaf, place: _bytes(place.shard_shape(leaf.shape), leaf.dtype), state, places)
    program = None
    if not avoids_collectives(mesh):
        learning_rate = stage_learning_rate(config, stage, length)
        network, whole = in_dtype(model, config.train.compute_dtype), functools.partial(gather, mesh=mesh)
        parts = StepParts(network, make_tx(masks), config.train, learning_rate, length.ramp, whole)
        program = _program(parts, state.train, places.train, mesh, config.batch_size, num_examples)
    images = config.batch_size // batch_mesh(config.train, mesh).size
    sent = _sent(weights.params, mesh)
    return StageForecast(stage, length.stage, images, sum(jax.tree.leaves(sizes)), program, sent)


def _state(config: RunConfig, model: Model, weights: Weights, make_tx: Any, masks: Any) -> StageState:
    """Shapes and types of a stage's state."""
    batch_shape = (config.batch_size, *model.input_shape)
    init = lambda start, masks: init_stage_state(start, make_tx(masks), first_perturbation(config.train, batch_shape))
    state: StageState = jax.eval_shape(init, weights, masks)
    return state


def _program(
    parts: StepParts, state: TrainState, places: Any, mesh: Mesh, batch_size: int, num_examples: int
) -> int | None:
    """What XLA sets aside for one step, in bytes."""
    like: Any = lambda shape, dtype, place=None: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    train = jax.tree.map(lambda leaf, place: like(leaf.shape, leaf.dtype, place), state, places)
    images = like((num_examples, *parts.model.input_shape), np.uint8, replicated(mesh))
    split = DeviceSplit(images, like((num_examples,), np.int32, replicated(mesh)))
    keys = StepKeys(jax.random.key(0), jax.random.key(1))
    step = step_as_program(parts, mesh).lower(train, split, like((batch_size,), np.int32), keys, False)
    analysis = step.compile().memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def _sent(params: chex.ArrayTree, mesh: Mesh) -> int:
    """Of N devices in a ring each sends 2 (N - 1) / N of what is summed, and (N - 1) / N of what is gathered."""
    if avoids_collectives(mesh) or mesh.size == 1:
        return 0
    total = cut = 0
    for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(state_home(params, mesh)), strict=True):
        total += _bytes(leaf.shape, leaf.dtype)
        cut += _bytes(leaf.shape, leaf.dtype) - _bytes(place.shard_shape(leaf.shape), leaf.dtype)
    return round(2 * (mesh.size - 1) / mesh.size * total) + cut


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f}"
