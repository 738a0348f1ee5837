"""The evaluations that are timed."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks.rows import ROWS, Row
from rap_jax.config import AttackConfig


@dataclasses.dataclass(frozen=True)
class Case:
    """An evaluation of noise in the shape of `row`'s images, with the network and the attack of that row.

    Attributes:
      num_images: in all.
      num_restarts: random starts of the attack, worst case per image.
      wrong_share: of the images is labelled as another class than the network's answer. The others get that answer,
        and a radius so small that no attack can change it: a network of random weights would lose nearly all of its
        answers, which flatters whoever stops there.
    """

    row: str
    num_images: int
    num_restarts: int = 1
    wrong_share: float = 0.0

    @property
    def of(self) -> Row:
        """Network, width and attack."""
        return ROWS[self.row]

    @property
    def attack(self) -> AttackConfig:
        """That of the row with this case's restarts and a radius of next to nothing."""
        return dataclasses.replace(self.of.attack, epsilon=1e-6, step_size=1e-7, num_restarts=self.num_restarts)

    def labels(self, answers: Sequence[int]) -> np.ndarray:
        """Labels int32 [N] for the network's answers [N]."""
        num_wrong = round(self.wrong_share * len(answers))
        labels = np.array(answers, np.int32)
        labels[:num_wrong] = (labels[:num_wrong] + 1) % 10
        return labels


BATCH_SIZE = 500
CASES = {
    "lenet_w4": Case("lenet_w4", 2000),
    "lenet_w4, 5 restarts, 30% wrong": Case("lenet_w4", 1000, num_restarts=5, wrong_share=0.3),
    "resnet18_w4": Case("resnet18_w4", 500),
}
