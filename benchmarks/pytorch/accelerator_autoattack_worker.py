"""The official side of the part `autoattack` of `benchmarks.accelerator`: pyautoattack on the card.

python -m benchmarks.pytorch.accelerator_autoattack_worker NETWORK RAW_DATA_DIR PRODUCTS NUM_IMAGES NUM_COMPONENTS
"""

import logging
import sys
import time

import torch
from pyautoattack import AutoAttack

from benchmarks.accelerators.attacked import EPSILON, open_attacked
from benchmarks.accelerators.process import serve_object
from benchmarks.pytorch.accelerator_step_worker import use_card
from benchmarks.pytorch.official_attacks import to_labels, to_torch
from benchmarks.pytorch.official_autoattack import lenet_of
from benchmarks.pytorch.trades_network import trades_network
from benchmarks.worker import Answer, clocked

# All at once: the official code does not fill places that become free.
_BATCH_SIZE = 1000
# Enough to load what PyTorch loads when it first needs it, and to let cuDNN choose.
_NUM_WARM_UP = 16


class Clock(logging.Handler):
    """Notes when each attack begins, which the official code tells its log."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.begun: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Takes `running NAME`."""
        word, _, name = record.getMessage().partition(" ")
        if word == "running":
            self.begun[name] = time.perf_counter()

    def seconds(self, end: float) -> dict[str, float]:
        """Of each attack, in their order."""
        ends = [*list(self.begun.values())[1:], end]
        return {name: until - start for (name, start), until in zip(self.begun.items(), ends, strict=True)}


class OfficialAutoAttack:
    """The network and the images on the card."""

    def __init__(self, network: str, raw_data_dir: str, products: str, num_images: int, num_components: int):
        self._device, attacked = use_card(products), open_attacked(network, raw_data_dir, num_images)
        self._num_components = num_components
        make = trades_network if attacked.is_trades else lenet_of
        self._network = make(attacked.state).to(self._device)
        self._images, self._labels = to_torch(attacked.images), to_labels(attacked.labels)

    def attack(self) -> Answer:
        """Seconds of the version `standard`, of each attack in it, and which images it left, as 0 and 1."""
        self._run(_NUM_WARM_UP, 1)
        log, clock, found = logging.getLogger("auto-attack"), Clock(), list[torch.Tensor]()
        log.setLevel(logging.DEBUG)
        log.addHandler(clock)
        times = clocked(lambda: found.append(self._run(len(self._labels), self._num_components)))
        parts = clock.seconds(time.perf_counter())
        right = found[0] == self._labels
        flags = "".join(str(int(flag)) for flag in right)
        return {"seconds": times["seconds"], "parts": parts, "robust": float(right.float().mean()), "flags": flags}

    def _run(self, num_images: int, num_components: int) -> torch.Tensor:
        """The classes of the images that it returns."""
        attack = AutoAttack(self._network, norm="Linf", eps=EPSILON, seed=0, version="standard", device=self._device)
        attack.attacks_to_run = attack.attacks_to_run[:num_components]
        some = self._images[:num_images], self._labels[:num_images]
        images, _ = attack.run_standard_evaluation(*some, batch_size=_BATCH_SIZE)
        with torch.no_grad():
            return self._network(images.to(self._device)).argmax(1).cpu()


def main(network: str, raw_data_dir: str, products: str, *numbers: str) -> None:
    """Answers the requests of `autoattack`."""
    serve_object(lambda: OfficialAutoAttack(network, raw_data_dir, products, *map(int, numbers)), "attack")


if __name__ == "__main__":
    main(*sys.argv[1:])
