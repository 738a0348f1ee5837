"""The processes that `benchmarks.soak` watches: one trains and evaluates in turn, one keeps the cores busy.

python -m benchmarks.soak_worker train       # prints a line of JSON after each step and each evaluation batch
python -m benchmarks.soak_worker neighbour
"""

import json
import os
import sys
import time

import jax
import numpy as np

from rap_jax._runtime.devices import start_cpu_devices
from rap_jax._runtime.mesh import DeviceSplit, first_device_sharding, make_mesh, put_split
from rap_jax.config import AttackConfig, ComputeConfig, ModelConfig, OptimizerConfig, TrainConfig
from rap_jax.data.batches import BatchInputs
from rap_jax.evaluation.accuracy import make_evaluator
from rap_jax.models import create_model
from rap_jax.training.optimizer import StagePlan, learning_rate_schedule, make_optimizer
from rap_jax.training.sharded_step import make_train_step
from rap_jax.training.state import init_stage_state, step_keys, stream_key

PARENT = os.getppid()
BATCH_SIZE, EVAL_BATCH_SIZE, STEPS_BETWEEN = 128, 500, 50
NUM_EXAMPLES, SHAPE = 2000, (28, 28, 1)
ATTACK = AttackConfig(epsilon=0.3, step_size=0.05, num_steps=10)
MODEL, COMPUTE = ModelConfig("lenet_mnist", width=2), ComputeConfig()


def say(kind: str, **values: object) -> None:
    """A sign of life."""
    print(json.dumps({"kind": kind} | values), flush=True)


def make_data() -> tuple[np.ndarray, np.ndarray]:
    """Ten random patterns with noise on them: something that can be learnt."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 2, (10, *SHAPE)) * 200
    labels = generator.integers(0, 10, NUM_EXAMPLES).astype(np.int32)
    return (patterns[labels] + generator.integers(0, 56, (NUM_EXAMPLES, *SHAPE))).astype(np.uint8), labels


def train() -> None:
    """Training steps and evaluations for ever, as a run does them: waiting for each."""
    start_cpu_devices(COMPUTE.num_cpu_devices, batch_size=BATCH_SIZE)
    mesh = make_mesh()
    say("devices", text=f"{mesh.size} x {mesh.devices.flat[0].device_kind}, batch {BATCH_SIZE}")
    model = create_model(MODEL, input_shape=SHAPE, num_classes=10, implementation=COMPUTE.implementation)
    settings = OptimizerConfig("adam", 1e-4, schedule="constant")
    learning_rate = learning_rate_schedule(settings, steps_per_epoch=100, num_steps=100)
    tx = make_optimizer(settings, learning_rate)
    place = first_device_sharding(mesh)
    weights = jax.jit(model.init, out_shardings=place)(jax.random.key(0))
    state = jax.jit(lambda start: init_stage_state(start, tx), out_shardings=place)(weights).train
    split: DeviceSplit = put_split(*make_data(), mesh)
    step = make_train_step(model, tx, TrainConfig(ATTACK), StagePlan("pretrain", 100, 100, learning_rate), mesh)
    evaluate = make_evaluator(model, ATTACK, mesh, batch_size=EVAL_BATCH_SIZE)
    keys = step_keys(0, "pretrain")
    generator = np.random.default_rng(1)
    while os.getppid() == PARENT:  # or whoever watched is gone
        for _ in range(STEPS_BETWEEN):
            indices = generator.choice(NUM_EXAMPLES, BATCH_SIZE, replace=False).astype(np.int32)
            began = time.monotonic()
            state, metrics = step(state, BatchInputs(*split, indices), keys, False)
            loss = float(metrics.loss)
            say("step", seconds=time.monotonic() - began, loss=loss)
        began = time.monotonic()
        on_batch = lambda done, total: say("evaluating", done=done)
        found = evaluate(state.params, state.batch_stats, split, stream_key(0, "select"), on_batch)
        say("evaluation", seconds=time.monotonic() - began, robust=found.robust)


def keep_busy() -> None:
    """Matrix products on all cores, for ever."""
    matrix = np.random.default_rng(0).standard_normal((1500, 1500)).astype(np.float32)
    while os.getppid() == PARENT:
        matrix @ matrix


if __name__ == "__main__":
    {"train": train, "neighbour": keep_busy}[sys.argv[1]]()
