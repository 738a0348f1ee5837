"""Natural and robust accuracy with their intervals.

An example counts as robust only if it is right on its clean image AND on the adversarial image of every restart: the
worst case per example, so robust accuracy never exceeds natural accuracy. Every adversarial image is predicted anew,
and its norm and range are checked: an attack that left the ball stops the evaluation.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax.attacks import norm_of, pgd_restarts
from rap_jax.config import AttackConfig
from rap_jax.data import padded_batches, to_unit
from rap_jax.losses import cross_entropy
from rap_jax.models import Model
from rap_jax.state import DeviceSplit, replicated, split_over_data

_Z_95 = 1.959963984540054
# Adding a perturbation to a pixel and taking the difference again rounds twice in float32.
_ROUNDING = 1e-5


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


class _Counts(NamedTuple):
    natural: jax.Array
    robust: jax.Array
    outside: jax.Array


OnBatch = Callable[[int, int], None]
Evaluator = Callable[..., Accuracy]


def make_evaluator(model: Model, attack: AttackConfig, mesh: Mesh, *, batch_size: int) -> Evaluator:
    """Builds `evaluate(params, batch_stats, split, key, on_batch=None) -> Accuracy`, compiled once for all its calls.

    The model is in evaluation mode. The last partial batch is padded, and the padding is not counted; a `batch_size`
    that the devices do not divide, or larger than the split, is rounded. `on_batch` is
    called with (images done, images in all) after every batch.
    """
    whole, split_first = replicated(mesh), split_over_data(mesh)
    count = jax.jit(
        lambda *arguments: _count_correct(model, attack, *arguments),
        in_shardings=(whole, whole, whole, split_first, split_first, whole),
        out_shardings=whole,
    )

    def evaluate(
        params: chex.ArrayTree,
        batch_stats: chex.ArrayTree,
        split: DeviceSplit,
        key: jax.Array,
        on_batch: OnBatch | None = None,
    ) -> Accuracy:
        num_examples = len(split.labels)
        padded_size = -(-min(batch_size, num_examples) // mesh.size) * mesh.size
        total = np.zeros(3, np.int64)
        for number, (indices, valid) in enumerate(_batches(num_examples, padded_size)):
            counts = count(params, batch_stats, split, indices, valid, jax.random.fold_in(key, number))
            total += np.array(jax.device_get(counts))
            _refuse_outside(int(total[2]), attack)
            if on_batch is not None:
                on_batch(min(num_examples, (number + 1) * padded_size), num_examples)
        return Accuracy(int(total[0]), int(total[1]), num_examples, attack)

    return evaluate


def _batches(num_examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if num_examples < 1:
        raise ValueError("The split to evaluate on is empty; expected at least 1 image.")
    yield from padded_batches(num_examples, batch_size)


def _refuse_outside(outside: int, attack: AttackConfig) -> None:
    if outside:
        raise ValueError(
            f"{outside} adversarial images are outside the {attack.norm} ball of radius {attack.epsilon} or outside "
            f"[0, 1], or are NaN; expected none. The weights may be NaN, or the attack is at fault."
        )


def _count_correct(
    model: Model,
    attack: AttackConfig,
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree,
    split: DeviceSplit,
    indices: jax.Array,
    valid: jax.Array,
    key: jax.Array,
) -> _Counts:
    images, labels = to_unit(split.images[indices]), split.labels[indices]
    logits_fn = lambda x: model.apply(params, batch_stats, x, False)[0]
    is_right = lambda x: logits_fn(x).argmax(-1) == labels
    candidates = pgd_restarts(key, lambda x: cross_entropy(logits_fn(x), labels), images, **dataclasses.asdict(attack))
    natural = is_right(images)
    robust = natural & jax.vmap(is_right)(candidates).all(0)
    outside = ~jax.vmap(lambda x: _is_inside(x, images, attack))(candidates).all(0)
    return _Counts(*((valid & flags).sum() for flags in (natural, robust, outside)))


def _is_inside(adversarial: jax.Array, images: jax.Array, attack: AttackConfig) -> jax.Array:
    """[N] bool; False for NaN as well, which fails every comparison."""
    size = norm_of(attack.norm).size(adversarial - images)
    in_box = ((adversarial >= 0) & (adversarial <= 1)).reshape(len(images), -1).all(1)
    return in_box & (size <= attack.epsilon * (1 + _ROUNDING) + 1e-6)
