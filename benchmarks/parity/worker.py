"""The rap_jax side of `benchmarks.parity.speed`: a process that runs AutoAttack on command.

python -m benchmarks.parity.worker RUN ARRAYS.npz EPSILON CACHE
"""

import sys
from typing import Any

import jax
import numpy as np

from benchmarks.parity.ours import component_alone
from benchmarks.worker import Answer, clocked, memory, serve
from launch.command import enable_compilation_cache
from rap_jax._runtime.devices import start_cpu_devices
from rap_jax.attacks import ThreatModel
from rap_jax.evaluation.auto_attack import AutoAttackResult, auto_attack
from rap_jax.runs.network import load_network

# No fewer images than that are attacked at a time.
_BATCH_SIZE = 64


def main(run: str, path: str, epsilon: str, cache: str) -> None:
    """Answers the requests of `speed`. Devices and the cache of compiled programs are those of the commands."""
    start_cpu_devices(0, batch_size=_BATCH_SIZE)
    enable_compilation_cache(cache)
    saved, arrays = load_network(run), np.load(path, allow_pickle=False)
    threat_model = ThreatModel("linf", float(epsilon))
    images, labels = arrays["images"], arrays["labels"]
    logits_fn = lambda images: saved.model.logits(saved.weights, images)

    def attack(part: str, seed: int) -> Answer:
        settings: dict[str, Any] = {"threat_model": threat_model, "key": jax.random.key(seed)}
        if part != "standard":  # `standard` is as users get it, with its diagnostics
            alone = component_alone(part, threat_model=threat_model, num_classes=saved.model.num_classes)
            settings |= {"components": (alone,), "diagnostics": False}
        found: list[AutoAttackResult] = []
        times = clocked(lambda: found.append(auto_attack(logits_fn, images, labels, **settings)))
        seconds = {part.name: part.seconds for part in found[0].components}
        return times | {"robust": found[0].robust_accuracy, "parts": seconds}

    serve({"attack": attack, "memory": memory})


if __name__ == "__main__":
    main(*sys.argv[1:])
