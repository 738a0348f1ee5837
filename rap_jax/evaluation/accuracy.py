"""Natural and robust accuracy with their intervals.

An example counts as robust only if it is right on its clean image AND on the adversarial image of every restart: the
worst case per example, so robust accuracy never exceeds natural accuracy. Every adversarial image is predicted anew,
and its norm and range are checked: an attack that left the ball stops the evaluation.

Examples that are decided are not attacked: neither those whose clean image is wrong, nor those that an earlier restart
has broken. The counts stay the same, since correctness does not depend on the rest of the batch. Examples wait for
their next restart, and batches are filled from all that wait, whatever restart each is at, so only the last ones have
gaps.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.interrupt import Interrupt
from rap_jax._runtime.mesh import DeviceSplit
from rap_jax._runtime.progress import Progress
from rap_jax.config import AttackConfig
from rap_jax.config.checks import require
from rap_jax.data import padded_batches
from rap_jax.evaluation.correctness import EvaluationInputs, SplitPredictor
from rap_jax.models import Model
from rap_jax.models.model import Weights

_Z_95 = 1.959963984540054


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95% score interval of a proportion (Wilson, 1927); unlike the normal one it stays inside [0, 1].

    Raises:
      ValueError: `correct` is not between 0 and `total`, or `total` is 0.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"correct is {correct!r} of total {total!r}; expected 0 <= correct <= total and total >= 1.")
    p, z = correct / total, _Z_95
    centre = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def robust_examples(
    examples: np.ndarray,
    attack_batch: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    num_restarts: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda num_left: None,
) -> np.ndarray:
    """Attacks examples until each is broken or has survived every restart.

    Args:
      examples: numbers of those to attack, int32 [N].
      attack_batch: (examples, restarts), both int32 [batch_size], to whether each is still correct, bool [batch_size].
        A pair is attacked once, but for the gaps of a batch, which repeat its last pair. Whether an example is correct
        must not depend on its neighbours in the batch.
      num_restarts: attacks on each example, numbered from 0; 1 or more.
      batch_size: 1 or more.
      on_batch: called after every batch with the number of attacks that there still are if nothing else is broken.

    Returns:
      The examples that survived every restart, int32, in the order of `examples`.

    Raises:
      ValueError: `num_restarts` or `batch_size` is below 1.
    """
    require(num_restarts >= 1, "num_restarts", num_restarts, "1 or more restarts")
    require(batch_size >= 1, "batch_size", batch_size, "1 or more examples")
    robust: list[np.ndarray] = []
    waiting = np.stack([examples, np.zeros_like(examples)])  # examples, restarts
    while waiting.shape[1]:
        batch, waiting = waiting[:, :batch_size], waiting[:, batch_size:]
        gaps = batch_size - batch.shape[1]  # one shape for all batches, so that an attack is compiled once
        correct = attack_batch(*np.pad(batch, ((0, 0), (0, gaps)), mode="edge"))[: batch.shape[1]]
        further = batch[:, correct] + np.array([[0], [1]], batch.dtype)
        survived = further[1] == num_restarts
        robust.append(further[0, survived])
        waiting = np.concatenate([waiting, further[:, ~survived]], axis=1)
        on_batch(int((num_restarts - waiting[1]).sum()))
    return examples[np.isin(examples, np.concatenate([examples[:0], *robust]))]


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
    restarts a part is done. `evaluate` raises a `ValueError` for an empty split, and where `SplitPredictor` does.
    """
    predictor = SplitPredictor(model, attack, mesh)

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
        inputs = predictor.open(Weights(params, batch_stats), split, key)
        size = -(-min(batch_size, num_examples) // mesh.size) * mesh.size
        tell: OnBatch = on_batch or (lambda done, total: None)
        natural = _correct_examples(predictor, inputs, size, tell)
        robust = robust_examples(
            natural,
            functools.partial(predictor.attacked, inputs),
            num_restarts=attack.num_restarts,
            batch_size=size,
            on_batch=lambda num_left: tell(num_examples - -(-num_left // attack.num_restarts), num_examples),
        )
        return Accuracy(len(natural), len(robust), num_examples, attack)

    return evaluate


def _correct_examples(
    predictor: SplitPredictor, inputs: EvaluationInputs, batch_size: int, tell: OnBatch
) -> np.ndarray:
    """Numbers of the examples whose clean image is correct, int32; the others are done."""
    num_examples, num_wrong, found = len(inputs.split.labels), 0, []
    for numbers, valid in padded_batches(num_examples, batch_size):
        correct = predictor.clean(inputs, numbers)
        found.append(numbers[valid & correct])
        num_wrong += int((valid & ~correct).sum())
        tell(num_wrong, num_examples)
    return np.concatenate(found)


class SplitEvaluator(NamedTuple):
    """Evaluates weights."""

    evaluate: Evaluator  # natural and robust accuracy of weights under an attack
    split: DeviceSplit  # whose images are attacked
    key: jax.Array  # typed PRNG key, of the attack's random starts
    interrupt: Interrupt  # looked at after every batch

    def __call__(self, label: str, weights: Weights) -> Accuracy:
        """Accuracies of `weights`; `label` is shown meanwhile.

        Raises:
          Interrupted: a signal came.
        """
        with Progress(label, len(self.split.labels), unit="image") as progress:

            def on_batch(done: int, total: int) -> None:
                del total
                progress.update(done)
                self.interrupt.stop_if_requested(f"while evaluating ({label})")

            return self.evaluate(weights.params, weights.batch_stats, self.split, self.key, on_batch)
