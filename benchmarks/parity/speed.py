"""Examples per second of AutoAttack, ours against the official code, in turn and each in a process of its own."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parity.kept import Answer
from benchmarks.parity.subject import Subject
from benchmarks.turns import in_turn
from benchmarks.worker import Worker

PARTS = ("standard", "apgd-ce", "apgd-t", "fab-t", "square")
# Enough to load what PyTorch loads when it first needs it.
_WARM_UP = {"part": "apgd-ce", "seed": 0, "count": 8}


def measure(run: Path, subject: Subject, part: str, *, epsilon: float, rounds: int) -> Answer:
    """Times `standard`, or one part alone on all images.

    Args:
      run: folder of the network.
      subject: that network, and the images.
      part: see `PARTS`.
      epsilon: radius, L-infinity.
      rounds: how often both run; the median counts.

    Returns:
      Examples per second, wrong ones included, and what stands beside them. The first call of rap_jax, which compiles,
      is apart; further calls of the process take the compiled programs from its cache on disk.
    """
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        state: dict[str, Any] = {f"state/{name}": value for name, value in subject.state.items()}
        np.savez(arrays, images=subject.images, labels=subject.labels, **state)
        cache = str(Path(folder) / "compiled")
        workers = {
            "rap_jax": Worker("benchmarks.parity.worker", str(run), str(arrays), str(epsilon), cache),
            "official": Worker("benchmarks.pytorch.autoattack_worker", str(arrays), str(epsilon)),
        }
        workers["official"].ask("attack", **_WARM_UP)
        first = workers["rap_jax"].ask("attack", part=part, seed=0)
        robust: dict[str, float] = {}

        def turn(name: str) -> Answer:
            answer = workers[name].ask("attack", part=part, seed=0)
            robust[name] = answer["robust"]
            return answer

        times = in_turn({name: lambda name=name: turn(name) for name in workers}, rounds=rounds)  # type: ignore[misc]
        megabytes = {name: worker.ask("memory")["megabytes"] for name, worker in workers.items()}
        for worker in workers.values():
            worker.close()
    found: Answer = {"ratio": times["official"].median / times["rap_jax"].median}
    found["rap_jax_first_seconds"] = first["seconds"]
    for name, side in times.items():
        found[f"{name}_per_second"] = len(subject.images) / side.median
        found[f"{name}_seconds"] = side.seconds
        found[f"{name}_robust"] = f"{robust[name]:.1%}"
        found[f"{name}_megabytes"] = megabytes[name]
        found[f"{name}_other_cores"] = max(side.other_cores)
    return found | {"num_images": len(subject.images)}
