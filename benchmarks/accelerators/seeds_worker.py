"""Several LeNets of different seeds in one program on one device: `benchmarks.sweep_worker` in the loop of a run.

python -m benchmarks.accelerators.seeds_worker WIDTH NUM_NETWORKS
"""

import sys

import jax

from benchmarks.accelerators.process import serve_object
from benchmarks.accelerators.step_worker import take_steps
from benchmarks.sweep_worker import SweepWorker
from benchmarks.worker import Answer
from rap_jax._runtime.mesh import make_mesh


class Seeds:
    """Training steps of all networks."""

    def __init__(self, width: int, num_networks: int):
        self._trainer = SweepWorker(width, num_networks, make_mesh(jax.devices()[:1]))

    def steps(self, count: int, num_ahead: int) -> Answer:
        """Seconds of a step of all networks."""
        return take_steps(self._trainer, count, num_ahead)


if __name__ == "__main__":
    width, num_networks = map(int, sys.argv[1:])
    serve_object(lambda: Seeds(width, num_networks), "steps")
