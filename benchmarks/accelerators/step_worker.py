"""The rap_jax side of the parts `steps` and `memory`: training steps on one device, waited for or sent ahead.

python -m benchmarks.accelerators.step_worker ROW_AS_JSON DTYPE [CACHE_FOLDER]
"""

import itertools
import json
import sys
from typing import Any, Protocol

import jax

from benchmarks.accelerators.process import serve_object
from benchmarks.rows import Row
from benchmarks.step_worker import StepWorker
from benchmarks.worker import Answer, clocked
from launch.command import enable_compilation_cache
from rap_jax._runtime.mesh import make_mesh
from rap_jax.data.batches import BatchInputs
from rap_jax.training.loop import Hooks, run_steps, train_steps
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.sharded_step import TrainStep
from rap_jax.training.state import StepKeys, TrainState


class Trainer(Protocol):
    """A network under training, such as a `StepWorker`."""

    train_step: TrainStep
    state: TrainState
    inputs: BatchInputs
    keys: StepKeys
    plan: StagePlan


def take_steps(trainer: Trainer, count: int, num_ahead: int) -> Answer:
    """Seconds of a step, of `count` steps in the loop of a run; with `num_ahead` 0 each is waited for."""

    def run() -> None:
        inputs = itertools.repeat(trainer.inputs, count)
        steps = train_steps(trainer.train_step, trainer.state, inputs, trainer.keys, trainer.plan, done=0)
        trainer.state = run_steps(steps, Hooks(), num_ahead=num_ahead).state

    answer = clocked(run)
    return answer | {"seconds": answer["seconds"] / count}


def peak_memory() -> Answer:
    """The most memory of the device that JAX has held in this process, in MB; None where the device does not tell."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {"megabytes": None if peak is None else peak / 1e6}


class Steps:
    """Training steps of one row."""

    def __init__(self, row: Row, compute_dtype: Any):
        self._trainer = StepWorker(row, make_mesh(jax.devices()[:1]), compute_dtype)

    def steps(self, count: int, num_ahead: int) -> Answer:
        """See `take_steps`."""
        return take_steps(self._trainer, count, num_ahead)

    def memory(self) -> Answer:
        """See `peak_memory`."""
        return peak_memory()


def main(row: str, compute_dtype: str, cache_folder: str = "") -> None:
    """Answers the requests of `steps` and `memory`."""
    enable_compilation_cache(cache_folder)
    serve_object(lambda: Steps(Row(**json.loads(row)), compute_dtype), "steps", "memory")


if __name__ == "__main__":
    main(*sys.argv[1:])
