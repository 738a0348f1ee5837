"""The rap_jax side of the part `autoattack`.

python -m benchmarks.accelerators.autoattack_worker NETWORK RAW_DATA_DIR PRODUCTS NUM_IMAGES NUM_COMPONENTS CACHE
"""

import sys

import jax

from benchmarks.accelerators.attacked import EPSILON, NUM_CLASSES, open_attacked
from benchmarks.accelerators.process import serve_object
from benchmarks.worker import Answer, clocked
from launch.command import enable_compilation_cache
from rap_jax.attacks import ThreatModel
from rap_jax.evaluation.auto_attack import AutoAttackResult, auto_attack
from rap_jax.evaluation.auto_attack.versions import components_of


class JaxAutoAttack:
    """The network and the images."""

    def __init__(self, network: str, raw_data_dir: str, products: str, num_images: int, num_components: int):
        jax.config.update("jax_default_matmul_precision", products)
        self._attacked = open_attacked(network, raw_data_dir, num_images)
        self._num_components = num_components

    def attack(self) -> Answer:
        """Seconds of the version `standard`, of each attack in it, and which images it left, as 0 and 1."""
        found = list[AutoAttackResult]()
        times = clocked(lambda: found.append(self._run()))
        parts = {component.name: component.seconds for component in found[0].components}
        flags = "".join(str(int(flag)) for flag in found[0].robust)
        return {"seconds": times["seconds"], "parts": parts, "robust": found[0].robust_accuracy, "flags": flags}

    def _run(self) -> AutoAttackResult:
        attacked, threat_model = self._attacked, ThreatModel("linf", EPSILON)
        components = components_of("standard", threat_model=threat_model, num_classes=NUM_CLASSES)
        return auto_attack(
            attacked.logits_fn,
            attacked.images,
            attacked.labels,
            threat_model=threat_model,
            key=jax.random.key(0),
            components=components[: self._num_components],
            devices=jax.devices()[:1],
            diagnostics=False,
        )


def main(network: str, raw_data_dir: str, products: str, num_images: str, num_components: str, cache: str) -> None:
    """Answers the requests of `autoattack`; a second call takes its programs from the cache, as a command does."""
    enable_compilation_cache(cache)
    numbers = int(num_images), int(num_components)
    serve_object(lambda: JaxAutoAttack(network, raw_data_dir, products, *numbers), "attack")


if __name__ == "__main__":
    main(*sys.argv[1:])
