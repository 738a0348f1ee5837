"""The official side of `parity.speed` and `robust_accuracy`: a process that runs AutoAttack on command.

python -m benchmarks.pytorch.autoattack_worker ARRAYS.npz EPSILON
"""

import sys

import numpy as np
import torch

from benchmarks.machine import num_cores
from benchmarks.pytorch.official_autoattack import lenet_of, run_autoattack
from benchmarks.pytorch.trades_network import trades_network
from benchmarks.worker import Answer, clocked, memory, serve

_STATE = "state/"


def main(path: str, epsilon: str) -> None:
    """Answers the requests of `benchmarks.parity.speed`."""
    torch.set_num_threads(num_cores())
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    state = {name.removeprefix(_STATE): value for name, value in arrays.items() if name.startswith(_STATE)}
    network = trades_network(state) if "feature_extractor.conv1.weight" in state else lenet_of(state)
    images, labels = arrays["images"], arrays["labels"]

    def attack(part: str, seed: int, count: int | None = None) -> Answer:
        found = []
        settings = {"norm": "linf", "epsilon": float(epsilon), "seed": seed}
        run = lambda: run_autoattack(network, images[:count], labels[:count], part, **settings)  # type: ignore[arg-type]
        times = clocked(lambda: found.append(run()))
        return times | {"robust": float(found[0].mean()), "flags": found[0].tolist()}

    serve({"attack": attack, "memory": memory})


if __name__ == "__main__":
    main(*sys.argv[1:])
