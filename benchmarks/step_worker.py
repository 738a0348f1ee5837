"""The rap_jax side of `benchmarks.train_step`: a process that takes training steps on command.

    python -m benchmarks.step_worker ROW CACHE_FOLDER

It does what a run of `launch.main` does: the devices that the command chooses, the step of
`rap_jax.training.sharded_step`, and one step in flight.
"""

import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.rows import ROWS, Row
from benchmarks.worker import Answer, clocked, memory, serve
from rap_jax._runtime.devices import start_cpu_devices
from rap_jax._runtime.mesh import first_device_sharding, make_mesh, put_split
from rap_jax.config import ModelConfig, OptimizerConfig, TrainConfig
from rap_jax.data.batches import BatchInputs
from rap_jax.models import create_model
from rap_jax.training.optimizer import StagePlan, learning_rate_schedule, make_optimizer
from rap_jax.training.sharded_step import make_train_step
from rap_jax.training.state import init_stage_state, step_keys
from rap_jax.training.step import StepMetrics

_GEMM_SIZE = 2048


class StepWorker:
    """A network, its optimizer and one batch of noise."""

    def __init__(self, row: Row, mesh: Mesh | None = None, compute_dtype: Literal["float32", "bfloat16"] = "float32"):
        mesh = make_mesh() if mesh is None else mesh
        model = create_model(ModelConfig(row.model, row.width), input_shape=row.input_shape, num_classes=10)
        settings = _optimizer(row)
        learning_rate = learning_rate_schedule(settings, steps_per_epoch=100, num_steps=100)
        tx = make_optimizer(settings, learning_rate)
        whole = first_device_sharding(mesh)
        weights = jax.jit(model.init, out_shardings=whole)(jax.random.key(0))
        self.state = jax.jit(lambda start: init_stage_state(start, tx), out_shardings=whole)(weights).train
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (row.batch_size, *row.input_shape), np.uint8)
        split = put_split(images, generator.integers(0, 10, row.batch_size, np.int32), mesh)
        self.inputs = BatchInputs(*split, np.arange(row.batch_size, dtype=np.int32))
        self.keys = step_keys(0, "pretrain")
        self.plan = StagePlan("pretrain", 100, 100, learning_rate)
        train = TrainConfig(row.attack, compute_dtype=compute_dtype)
        self.train_step = make_train_step(model, tx, train, self.plan, mesh)

    def step(self) -> StepMetrics:
        """One training step, waited for as in a run."""
        self.state, metrics = self.train_step(self.state, self.inputs, self.keys, False)
        return jax.device_get(metrics)


def _optimizer(row: Row) -> OptimizerConfig:
    if row.optimizer == "adam":
        return OptimizerConfig("adam", 1e-3, schedule="constant")
    return OptimizerConfig("sgd", 0.1, schedule="constant", momentum=0.9, weight_decay=1e-4)


def _gemm(count: int) -> Answer:
    left, right = (jax.random.normal(key, (_GEMM_SIZE, _GEMM_SIZE)) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(jnp.matmul)
    product(left, right).block_until_ready()
    return clocked(lambda: product(left, right).block_until_ready(), count)


def main(row: str, cache_folder: str) -> None:
    """Answers the requests of `benchmarks.train_step`."""
    start_cpu_devices(0, batch_size=ROWS[row].batch_size)
    jax.config.update("jax_compilation_cache_dir", cache_folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    at_start = memory()
    worker = StepWorker(ROWS[row])
    serve(
        {
            "steps": lambda count: clocked(worker.step, count),
            "gemm": _gemm,
            "memory_at_start": lambda: at_start,
            "memory": memory,
        }
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
