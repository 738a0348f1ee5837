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
from rap_jax.data.batches import BatchInputs
from rap_jax.models import Model, in_dtype
from rap_jax.models.model import Weights
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.state import StepKeys, TrainState
from rap_jax.training.step import AttackInputs, StepFunctions, StepMetrics

TrainStep = Callable[[TrainState, BatchInputs, StepKeys, bool], tuple[TrainState, StepMetrics]]


def step_functions(
    model: Model,
    tx: optax.GradientTransformationExtraArgs,
    config: TrainConfig,
    plan: StagePlan,
    mesh: Mesh,
    *,
    teacher: Model | None = None,
) -> StepFunctions:
    """The functions of a step on this mesh; the networks compute in the config's `compute_dtype`."""
    narrow = lambda network: in_dtype(network, config.compute_dtype)
    complete = functools.partial(gather, mesh=mesh)
    return StepFunctions(narrow(model), tx, config, plan, complete, None if teacher is None else narrow(teacher))


def make_train_step(
    model: Model,
    tx: optax.GradientTransformationExtraArgs,
    config: TrainConfig,
    plan: StagePlan,
    mesh: Mesh,
    *,
    teacher: Model | None = None,
) -> TrainStep:
    """Builds `step(state, inputs, keys, dual_step) -> (state, metrics)`, compiled once per stage.

    State and inputs have the `first_device_sharding` of the mesh; indices are NumPy arrays. The state is donated: it
    lives on in the returned one.
    """
    functions = step_functions(model, tx, config, plan, mesh, teacher=teacher)
    if avoids_collectives(mesh):
        return step_in_programs(functions, mesh)
    program, share = step_as_program(functions, mesh), split_over_data(mesh)

    def train_step(
        state: TrainState, inputs: BatchInputs, keys: StepKeys, dual_step: bool
    ) -> tuple[TrainState, StepMetrics]:
        if inputs.indices is not None:
            inputs = inputs._replace(indices=put(np.asarray(inputs.indices), share))
        return program(state, inputs, keys, dual_step)

    return train_step


def step_as_program(functions: StepFunctions, mesh: Mesh) -> jax.stages.Wrapped:
    """One program: the state has its `state_shardings`, the batch is split over the mesh.

    The loss is a mean over the global batch, so XLA sums gradients over the devices by itself.
    """
    everywhere, share = replicated(mesh), split_over_data(mesh)

    def step(
        state: TrainState, inputs: BatchInputs, keys: StepKeys, dual_step: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        if inputs.indices is not None:
            inputs = inputs._replace(indices=jax.lax.with_sharding_constraint(inputs.indices, share))
        after, metrics = functions.step(state, inputs, keys, dual_step)
        shardings = state_shardings(after, mesh, unsharded=everywhere)
        return jax.lax.with_sharding_constraint(after, shardings), gather(metrics, mesh)

    return jax.jit(step, in_shardings=(None, None, everywhere, everywhere), donate_argnums=0)


def step_in_programs(functions: StepFunctions, mesh: Mesh) -> TrainStep:
    """Three programs: the attack is split over the mesh, the other two run where state and inputs lie."""
    prepare, update = jax.jit(functions.prepare), jax.jit(functions.update, donate_argnums=0)
    attack, shardings = attack_program(functions, mesh), attack_shardings(batch_mesh(functions.config, mesh))

    def train_step(
        state: TrainState, inputs: BatchInputs, keys: StepKeys, dual_step: bool
    ) -> tuple[TrainState, StepMetrics]:
        batch = prepare(state.step, inputs, keys, state.teacher)
        if functions.config.attacks_first:
            weights = Weights(state.params, state.batch_stats)
            images = attack(*jax.device_put((weights, batch), shardings))
            batch = functions.attacked(batch, jax.device_get(images))
        return update(state, batch, dual_step)

    return train_step


def attack_program(functions: StepFunctions, mesh: Mesh) -> jax.stages.Wrapped:
    """The attack of a step as a program of its own: (Weights, AttackInputs) -> images, split over the devices.

    Each device runs `functions.attack` on its share of the batch. Were the split left to XLA, as in `step_as_program`,
    it would add collectives where it sees a use for them (it did for the restarts of a ResNet).
    """
    mesh = batch_mesh(functions.config, mesh)

    def attack(weights: Weights, batch: AttackInputs) -> chex.ArrayTree:
        if functions.config.attack_batch_norm == "batch":
            return functions.attack(weights, batch)
        attack_some = lambda some: functions.attack(
            weights, AttackInputs(some[0], some[1], some[2], batch.scale, some[3])
        )
        return map_microbatches(attack_some, (batch.images, batch.targets, batch.keys, batch.teacher), mesh)

    specs = jax.tree.map(lambda sharding: sharding.spec, attack_shardings(mesh))
    images = specs[1].images
    return jax.jit(jax.shard_map(attack, mesh=mesh, in_specs=specs, out_specs=images, check_vma=False))


def attack_shardings(mesh: Mesh) -> tuple[Any, AttackInputs]:
    """Shardings of the weights and inputs of an attack program: the examples are split, all else is replicated."""
    everywhere: Any = replicated(mesh)  # Any: shardings stand where arrays will
    share: Any = split_over_data(mesh)
    return everywhere, AttackInputs(share, share, share, everywhere, share, share)


def batch_mesh(config: TrainConfig, mesh: Mesh) -> Mesh:
    """The devices that the batch of a step is split over.

    Where collectives are avoided that is one, unless there is an attack before the training pass, and one that treats
    every image by itself: with the batch's own BatchNorm statistics it does not.
    """
    by_itself = config.attacks_first and config.attack_batch_norm == "running"
    return make_mesh([mesh.devices.flat[0]]) if avoids_collectives(mesh) and not by_itself else mesh
