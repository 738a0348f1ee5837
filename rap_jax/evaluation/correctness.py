"""Per-image correctness on clean and adversarial batches, with a validity check.

Valid means finite logits and a perturbation inside the ball and the pixel range. A program answers for each image, on
the device that has it, and sums nothing up: no device waits for another (see `rap_jax._runtime.mesh`). The result for
an image does not depend on its batch or device, but for rounding: its random start follows from the key, its number in
the split and the restart alone.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.mesh import DeviceSplit, fetch, map_microbatches, put, put_key, replicated, split_over_data
from rap_jax.attacks import is_inside
from rap_jax.attacks.losses import cross_entropy
from rap_jax.attacks.pgd import PgdSettings, ascend
from rap_jax.config import AttackConfig
from rap_jax.data import to_unit
from rap_jax.models import Model
from rap_jax.models.model import Weights


class Examples(NamedTuple):
    """A batch. Attributes: images: uint8 [N, H, W, C]; labels, numbers (in the split), restarts: int32 [N]."""

    images: jax.Array
    labels: jax.Array
    numbers: jax.Array
    restarts: jax.Array


class Verdicts(NamedTuple):
    """Attributes: right: bool [N]; sound: bool [N], False where image or logits are not what they have to be."""

    right: jax.Array
    sound: jax.Array


Program = Callable[[Weights, jax.Array, Examples], Verdicts]


def clean_program(model: Model, mesh: Mesh) -> Program:
    """(weights, key, examples) -> verdicts on the images as they are; key and restarts are not used.

    Sound are finite logits: of NaN the largest would be the first, and class 0 be right.
    """

    def judge(weights: Weights, key: jax.Array, examples: Examples) -> Verdicts:
        del key
        return _predict(model, weights, to_unit(examples.images), examples.labels)

    return _on_each_device(judge, mesh)


def attacked_program(model: Model, attack: AttackConfig, mesh: Mesh) -> Program:
    """(weights, key, examples) -> verdicts on the images as one restart of the attack leaves them.

    Sound are finite logits of images inside the ball and inside [0, 1] to which no gradient that is NaN has led.
    BatchNorm is in evaluation mode.
    """
    settings = PgdSettings(**dataclasses.asdict(dataclasses.replace(attack, num_restarts=1)))

    def judge(weights: Weights, key: jax.Array, examples: Examples) -> Verdicts:
        images, labels = to_unit(examples.images), examples.labels
        loss_fn = lambda x: cross_entropy(model.apply(*weights, x, False)[0], labels)
        keys = jax.vmap(start_key, (None, 0, 0))(key, examples.numbers, examples.restarts)
        (adversarial,), (sound,) = ascend(keys, loss_fn, images, settings)
        right, finite = _predict(model, weights, adversarial, labels)
        inside = is_inside(adversarial, images, epsilon=attack.epsilon, norm=attack.norm)
        return Verdicts(right, sound & finite & inside)

    return _on_each_device(judge, mesh)


def start_key(key: jax.Array, number: jax.Array | int, restart: jax.Array | int) -> jax.Array:
    """The key of one random start: that of the example `number`, in this restart."""
    return jax.random.fold_in(jax.random.fold_in(key, number), restart)


def _on_each_device(judge: Program, mesh: Mesh) -> Program:
    """Compiles it: every device has the weights, the key and its share of the examples."""
    whole, share = replicated(mesh).spec, split_over_data(mesh).spec

    def judge_share(weights: Weights, key: jax.Array, examples: Examples) -> Verdicts:
        return map_microbatches(lambda part: judge(weights, key, part), examples, mesh)

    specs = (whole, whole, share)
    return jax.jit(jax.shard_map(judge_share, mesh=mesh, in_specs=specs, out_specs=share, check_vma=False))


def _predict(model: Model, weights: Weights, images: jax.Array, labels: jax.Array) -> Verdicts:
    logits = model.apply(*weights, images, False)[0]
    return Verdicts(logits.argmax(-1).astype(jnp.int32) == labels, jnp.isfinite(logits).all(-1))


class Case(NamedTuple):
    """What is judged: weights, on all devices; a split, on one or on all; the key of all random starts."""

    weights: Weights
    split: DeviceSplit
    key: jax.Array


class Judge:
    """Gives verdicts on examples of a case, a batch at a time; compiled once for all cases.

    It takes numbers of examples, int32 [N], where N is a multiple of the devices, and returns whether each is right,
    bool [N]. It waits for the answer: there is never more than one program under way.
    """

    def __init__(self, model: Model, attack: AttackConfig, mesh: Mesh):
        self._clean, self._attacked = clean_program(model, mesh), attacked_program(model, attack, mesh)
        self._attack, self._mesh = attack, mesh

    def open(self, weights: Weights, split: DeviceSplit, key: jax.Array) -> Case:
        """Puts weights and key, which may lie on any of the devices, where the programs want them."""
        return Case(jax.device_put(weights, replicated(self._mesh)), split, put_key(key, self._mesh))

    def clean(self, case: Case, numbers: np.ndarray) -> np.ndarray:
        """Whether clean images are right; a `ValueError` if their logits are NaN or infinite."""
        verdicts = self._run(self._clean, case, numbers, np.zeros_like(numbers))
        _refuse_unsound(verdicts, "clean images get logits that are NaN or infinite")
        return np.asarray(verdicts.right)

    def attacked(self, case: Case, numbers: np.ndarray, restarts: np.ndarray) -> np.ndarray:
        """Whether attacked images are right; a `ValueError` if they left ball or range, or anything is NaN.

        Args:
          restarts: of the attack, int32 [N], for each image its own.
        """
        verdicts = self._run(self._attacked, case, numbers, restarts)
        attack = self._attack
        ball = f"the {attack.norm} ball of radius {attack.epsilon}"
        _refuse_unsound(
            verdicts, f"adversarial images are outside {ball} or outside [0, 1], or their logits or gradients are NaN"
        )
        return np.asarray(verdicts.right)

    def _run(self, program: Program, case: Case, numbers: np.ndarray, restarts: np.ndarray) -> Verdicts:
        images, labels = _gather(case.split, numbers)
        share = split_over_data(self._mesh)
        images, labels = jax.device_put((images, labels), share)
        examples = Examples(images, labels, put(numbers, share), put(restarts, share))
        return fetch(program(case.weights, case.key, examples), self._mesh)


@jax.jit
def _gather(split: DeviceSplit, numbers: np.ndarray) -> DeviceSplit:
    """Where the split lies; the batch is divided among the devices after that."""
    return DeviceSplit(split.images[numbers], split.labels[numbers])


def _refuse_unsound(verdicts: Verdicts, what: str) -> None:
    unsound = int((~verdicts.sound).sum())
    if unsound:
        raise ValueError(
            f"{unsound} {what}; expected none. The weights may be NaN or far too large, or the attack is at fault."
        )
