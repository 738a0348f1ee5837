"""Training steps, compiled for the devices that there are.

On one device, and on accelerators, a step is one program, whose batch is split over the devices. On several devices of
a CPU it is three: only the attack is split, and what comes before and after it runs on the first device with the whole
batch, so that no device ever waits for another inside a program (see `rap_jax._runtime.mesh`). The numbers are the same
up to rounding. Natural and free training have no attack to split, so they run on the first device.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rap_jax._runtime.mesh import (
    DeviceSplit,
    avoids_collectives,
    gather,
    make_mesh,
    map_microbatches,
    put,
    replicated,
    split_over_data,
    state_shardings,
)
from rap_jax.config import TrainConfig
from rap_jax.data.batches import Batch
from rap_jax.models import Model, in_dtype
from rap_jax.models.model import Weights
from rap_jax.training.state import TrainState
from rap_jax.training.step import AttackInputs, StepFunctions
from rap_jax.training.step import StepKeys as StepKeys
from rap_jax.training.step import StepMetrics as StepMetrics

TrainStep = Callable[[TrainState, DeviceSplit, np.ndarray | None, StepKeys, bool], tuple[TrainState, StepMetrics]]


def make_train_step(
    model: Model,
    tx: optax.GradientTransformationExtraArgs,
    config: TrainConfig,
    learning_rate: optax.Schedule,
    mesh: Mesh,
    *,
    ramp_steps: int = 0,
) -> TrainStep:
    """Builds `step(state, split, indices, keys, dual_step) -> (state, metrics)`, compiled once per stage.

    Without indices the split is the batch.

    State and split have the `first_device_sharding` of the mesh. The state is donated: it lives on in the returned one.
    The network computes in the config's `compute_dtype`.

    Args:
      ramp_steps: see `StepFunctions`.
    """
    whole = functools.partial(gather, mesh=mesh)
    functions = StepFunctions(in_dtype(model, config.compute_dtype), tx, config, learning_rate, ramp_steps, whole)
    if avoids_collectives(mesh):
        return step_in_programs(functions, mesh)
    program, share = step_as_program(functions, mesh), split_over_data(mesh)

    def train_step(
        state: TrainState, split: DeviceSplit, indices: np.ndarray | None, keys: StepKeys, dual_step: bool
    ) -> tuple[TrainState, StepMetrics]:
        return program(state, split, None if indices is None else put(indices, share), keys, dual_step)

    return train_step


def step_as_program(functions: StepFunctions, mesh: Mesh) -> jax.stages.Wrapped:
    """One program: the state lies at its `state_shardings`, the batch is split over the mesh.

    The loss is a mean over the global batch, so XLA sums gradients over the devices by itself.
    """
    whole, share = replicated(mesh), split_over_data(mesh)

    def step(
        state: TrainState, split: DeviceSplit, indices: jax.Array | None, keys: StepKeys, dual_step: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        indices = None if indices is None else jax.lax.with_sharding_constraint(indices, share)
        found, metrics = functions.step(state, split, indices, keys, dual_step)
        return jax.lax.with_sharding_constraint(found, state_shardings(found, mesh, unsharded=whole)), gather(
            metrics, mesh
        )

    return jax.jit(step, in_shardings=(None, None, None, whole, whole), donate_argnums=0)


def step_in_programs(functions: StepFunctions, mesh: Mesh) -> TrainStep:
    """Three programs: the attack is split over the mesh, the other two run where state and split lie."""
    prepare, update = jax.jit(functions.prepare), jax.jit(functions.update, donate_argnums=0)
    attack, place = attack_program(functions, mesh), attack_shardings(batch_mesh(functions.config, mesh))

    def train_step(
        state: TrainState, split: DeviceSplit, indices: np.ndarray | None, keys: StepKeys, dual_step: bool
    ) -> tuple[TrainState, StepMetrics]:
        task = prepare(state.step, split, indices, keys)
        if functions.config.attacks_first:
            weights = Weights(state.params, state.batch_stats)
            images = attack(*jax.device_put((weights, task), place))
            task = task.with_images(jax.device_get(images))
        return update(state, task, dual_step)

    return train_step


def attack_program(functions: StepFunctions, mesh: Mesh) -> jax.stages.Wrapped:
    """The attack of a step as a program of its own: (Weights, AttackInputs) -> images, split over the devices.

    Each device runs `functions.attack` on its share of the batch. Were the split left to XLA, as in `step_as_program`,
    it would add collectives where it sees a use for them (it did for the restarts of a ResNet).
    """
    mesh = batch_mesh(functions.config, mesh)

    def attack(weights: Weights, task: AttackInputs) -> chex.ArrayTree:
        if functions.config.attack_batch_norm == "batch":
            return functions.attack(weights, task)
        return map_microbatches(
            lambda each: functions.attack(weights, AttackInputs(*each, task.scale)), (task.batch, task.keys), mesh
        )

    specs = jax.tree.map(lambda sharding: sharding.spec, attack_shardings(mesh))
    images = specs[1].batch.images
    return jax.jit(jax.shard_map(attack, mesh=mesh, in_specs=specs, out_specs=images, check_vma=False))


def attack_shardings(mesh: Mesh) -> tuple[Any, AttackInputs]:
    """Where weights and task of an attack program lie: on every device all, but of the batch its share."""
    whole: Any = replicated(mesh)  # Any: shardings stand where arrays will
    share: Any = split_over_data(mesh)
    return whole, AttackInputs(Batch(share, share), share, whole)


def batch_mesh(config: TrainConfig, mesh: Mesh) -> Mesh:
    """The devices that the batch of a step is split over.

    Where collectives are avoided that is one, unless there is an attack before the training pass, and one that treats
    every image by itself: with the batch's own BatchNorm statistics it does not.
    """
    by_itself = config.attacks_first and config.attack_batch_norm == "running"
    return make_mesh([mesh.devices.flat[0]]) if avoids_collectives(mesh) and not by_itself else mesh
