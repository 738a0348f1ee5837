"""Natural and robust accuracy with their intervals.

An example counts as robust only if it is right on its clean image AND on the adversarial image of every restart: the
worst case per example, so robust accuracy never exceeds natural accuracy. Every adversarial image is predicted anew,
and its norm and range are checked: an attack that left the ball stops the evaluation.

What is decided is not attacked: not an example whose clean image is wrong, nor one that an earlier restart has broken.
That leaves the counts as they are, since a verdict does not depend on what else is in the batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax.config import AttackConfig
from rap_jax.data import padded_batches
from rap_jax.interval import wilson_interval
from rap_jax.models import Model
from rap_jax.state import DeviceSplit, Weights
from rap_jax.survivors import find_survivors
from rap_jax.verdict import Case, Judge


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Counts of one evaluation and the attack that produced them."""

    natural_correct: int
    robust_correct: int
    num_examples: int
    attack: AttackConfig

    @property
    def natural(self) -> float:
        """Share of clean images that are classified correctly, in [0, 1]."""
        return self.natural_correct / self.num_examples

    @property
    def robust(self) -> float:
        """Share of examples that the attack did not break, in [0, 1]."""
        return self.robust_correct / self.num_examples

    @property
    def score(self) -> float:
        """What chooses the kept model: the mean of natural and robust accuracy."""
        return (self.natural + self.robust) / 2

    def to_json(self) -> dict[str, Any]:
        """Accuracies, their 95% Wilson intervals and the attack's settings."""
        return {
            "natural_accuracy": self.natural,
            "natural_interval": list(wilson_interval(self.natural_correct, self.num_examples)),
            "robust_accuracy": self.robust,
            "robust_interval": list(wilson_interval(self.robust_correct, self.num_examples)),
            "num_examples": self.num_examples,
            "attack": dataclasses.asdict(self.attack),
        }


OnBatch = Callable[[int, int], None]
Evaluator = Callable[..., Accuracy]


def make_evaluator(model: Model, attack: AttackConfig, mesh: Mesh, *, batch_size: int) -> Evaluator:
    """Builds `evaluate(params, batch_stats, split, key, on_batch=None) -> Accuracy`, compiled once for all its calls.

    The model is in evaluation mode. The last partial batch is padded, and the padding is not counted; a `batch_size`
    that the devices do not divide, or larger than the split, is rounded. But for rounding, the counts depend on neither
    the batch size nor the devices. Weights and split may lie on one of the devices or on all.

    `on_batch` is called with (images done, images in all) after every batch; of an image that has survived some of the
    restarts a part is done. `evaluate` raises a `ValueError` for an empty split, and where `Judge` does.
    """
    judge = Judge(model, attack, mesh)

    def evaluate(
        params: chex.ArrayTree,
        batch_stats: chex.ArrayTree,
        split: DeviceSplit,
        key: jax.Array,
        on_batch: OnBatch | None = None,
    ) -> Accuracy:
        num_examples = len(split.labels)
        if num_examples < 1:
            raise ValueError("The split to evaluate on is empty; expected at least 1 image.")
        case = judge.open(Weights(params, batch_stats), split, key)
        size = -(-min(batch_size, num_examples) // mesh.size) * mesh.size
        tell: OnBatch = on_batch or (lambda done, total: None)
        natural = _naturally_right(judge, case, size, tell)
        robust = find_survivors(
            natural,
            functools.partial(judge.attacked, case),
            num_restarts=attack.num_restarts,
            batch_size=size,
            on_batch=lambda num_left: tell(num_examples - -(-num_left // attack.num_restarts), num_examples),
        )
        return Accuracy(len(natural), len(robust), num_examples, attack)

    return evaluate


def _naturally_right(judge: Judge, case: Case, batch_size: int, tell: OnBatch) -> np.ndarray:
    """Numbers of the examples whose clean image is right, int32; the others are done."""
    num_examples, num_wrong, found = len(case.split.labels), 0, []
    for numbers, valid in padded_batches(num_examples, batch_size):
        right = judge.clean(case, numbers)
        found.append(numbers[valid & right])
        num_wrong += int((valid & ~right).sum())
        tell(num_wrong, num_examples)
    return np.concatenate(found)
