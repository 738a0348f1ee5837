"""A process of `benchmarks.sweep`: it trains one network, or several of a sweep in one program, on command.

    python -m benchmarks.sweep_worker WIDTH NUM_NETWORKS NUM_DEVICES [CORE]

One network takes the step of `launch.main`. Several differ by their seed: their states are stacked, and one program
does the same step for all of them by `jax.vmap`, those of each device on that device. CORE is the only one that is
used.
"""

import os
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.worker import Answer, clocked, serve
from rap_jax._runtime.devices import start_cpu_devices
from rap_jax._runtime.mesh import (
    first_device_sharding,
    make_mesh,
    map_microbatches,
    put_split,
    replicated,
    split_over_data,
)
from rap_jax.config import AttackConfig, ModelConfig, OptimizerConfig, TrainConfig
from rap_jax.data.batches import BatchInputs
from rap_jax.models import create_model
from rap_jax.models.model import Weights
from rap_jax.training.optimizer import StagePlan, learning_rate_schedule, make_optimizer
from rap_jax.training.sharded_step import TrainStep, make_train_step
from rap_jax.training.state import StepKeys, TrainState, init_stage_state
from rap_jax.training.step import AttackInputs, StepFunctions, StepMetrics

BATCH_SIZE = 128
# As `--flagfile=quick_mnist` trains.
_TRAIN = TrainConfig(AttackConfig(epsilon=0.3, step_size=0.075, num_steps=10))
_OPTIMIZER = OptimizerConfig("adam", 3e-3, schedule="cosine")
_SHAPE, _NUM_CLASSES, _NUM_STEPS = (28, 28, 1), 10, 421


class SweepWorker:
    """Networks under training, and a batch of noise for each."""

    def __init__(self, width: int, num_networks: int, mesh: Mesh | None = None):
        mesh, self.num_networks = make_mesh() if mesh is None else mesh, num_networks
        model = create_model(ModelConfig("lenet_mnist", width), input_shape=_SHAPE, num_classes=_NUM_CLASSES)
        learning_rate = learning_rate_schedule(_OPTIMIZER, steps_per_epoch=_NUM_STEPS, num_steps=_NUM_STEPS)
        tx = make_optimizer(_OPTIMIZER, learning_rate)
        self.plan = plan = StagePlan("pretrain", _NUM_STEPS, 1, learning_rate)
        fresh = lambda seed: init_stage_state(model.init(jax.random.key(seed)), tx).train
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (num_networks * BATCH_SIZE, *_SHAPE), np.uint8)
        labels = generator.integers(0, _NUM_CLASSES, len(images), np.int32)
        indices = np.arange(len(images), dtype=np.int32).reshape(num_networks, BATCH_SIZE)
        if num_networks == 1:
            self.state = jax.jit(fresh, out_shardings=first_device_sharding(mesh))(0)
            self.inputs, self.keys = BatchInputs(*put_split(images, labels, mesh), indices[0]), _keys(0)
            self.train_step = make_train_step(model, tx, _TRAIN, plan, mesh)
        else:
            seeds, share = np.arange(num_networks), split_over_data(mesh)
            self.state = jax.jit(jax.vmap(fresh), out_shardings=share)(seeds)
            split = jax.device_put((images, labels), replicated(mesh))
            each, self.keys = jax.device_put((indices, jax.jit(jax.vmap(_keys))(seeds)), share)
            self.inputs = BatchInputs(split[0], split[1], each)
            self.train_step = step_of_all(StepFunctions(model, tx, _TRAIN, plan), mesh)

    def step(self) -> StepMetrics:
        """One training step of every network, waited for as in a run."""
        self.state, metrics = self.train_step(self.state, self.inputs, self.keys, False)
        return jax.device_get(metrics)

    def steps(self, count: int) -> Answer:
        """Seconds of a step of one network."""
        answer = clocked(self.step, count)
        return answer | {"seconds": answer["seconds"] / self.num_networks}


def step_of_all(functions: StepFunctions, mesh: Mesh) -> TrainStep:
    """`rap_jax.training.sharded_step` for stacked states: one program in which no device waits for another."""

    def one(
        state: TrainState, inputs: BatchInputs, keys: StepKeys, dual_step: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        batch = functions.prepare(state.step, inputs, keys)
        weights = Weights(state.params, state.batch_stats)
        attack = lambda some: functions.attack(weights, AttackInputs(some[0], some[1], some[2], batch.scale))
        images: Any = map_microbatches(attack, (batch.images, batch.targets, batch.keys), mesh)
        return functions.update(state, batch._replace(images=images), dual_step)

    whole, share = replicated(mesh).spec, split_over_data(mesh).spec
    along: Any = BatchInputs  # of axes and specs in place of arrays
    on_device = jax.vmap(one, in_axes=(0, along(None, None, 0), 0, None))
    specs = (share, along(whole, whole, share), share, whole)
    return jax.jit(
        jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=share, check_vma=False), donate_argnums=0
    )


def _keys(seed: jax.Array | int) -> StepKeys:
    return StepKeys(*(jax.random.fold_in(jax.random.key(number), seed) for number in range(2)))


def main(width: int, num_networks: int, num_devices: int, core: int | None = None) -> None:
    """Answers the requests of `benchmarks.sweep`."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    start_cpu_devices(num_devices, batch_size=BATCH_SIZE)
    worker = SweepWorker(width, num_networks)
    serve({"steps": worker.steps})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
