"""Per-image correctness on clean and adversarial batches, with a validity check.

Valid means finite logits and a perturbation inside the ball and the pixel range. A program answers for each image, on
the device that has it, and sums nothing up: no device waits for another (see `rap_jax._runtime.mesh`). The result for
an image does not depend on its batch or device, but for rounding: its random start follows from the key, its number in
the split and the restart alone. The last pass, which says whether an image is right, multiplies in float32 on every
device (`exact_products`); the attack before it does so as the device does by default.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.functions import exact_products
from rap_jax._runtime.mesh import (
    DeviceSplit,
    fetch,
    map_microbatches,
    put,
    put_key,
    replicated,
    split_over_data,
    take_images,
)
from rap_jax.attacks import ThreatModel, pgd_restarts
from rap_jax.attacks.losses import cross_entropy, margin
from rap_jax.config import AttackConfig
from rap_jax.data import to_unit
from rap_jax.models import Model
from rap_jax.models.model import Weights


class Correctness(NamedTuple):
    """What a network makes of images, leaves [N]."""

    # The class, int32, and whether it is the label, bool.
    predicted: Any
    correct: Any
    margin: Any  # of the best wrong logit over the right one: above 0 where misclassified
    size: Any  # norm of the perturbation
    valid: Any  # finite logits, and a perturbation inside the ball and the pixel range, bool


def predict_correct(
    logits: jax.Array, adversarial: jax.Array, images: jax.Array, labels: jax.Array, threat_model: ThreatModel
) -> Correctness:
    """Correctness of `adversarial` images by their logits [N, K]; `images` are the clean ones.

    Valid logits are finite: of NaN the largest would be the first, and class 0 be right.
    """
    predicted = logits.argmax(-1).astype(jnp.int32)
    valid = jnp.isfinite(logits).all(-1) & threat_model.contains(adversarial, images)
    size = threat_model.size(adversarial - images)
    return Correctness(predicted, predicted == labels.astype(jnp.int32), margin(logits, labels), size, valid)


def on_each_device(function: Callable[[Any, jax.Array, Any], Any], mesh: Mesh) -> jax.stages.Wrapped:
    """Compiles (weights, key, examples) -> results, leaves [N, ...], which treats every example by itself.

    Every device has the weights, the key and its share of the examples, in microbatches.
    """
    whole, share = replicated(mesh).spec, split_over_data(mesh).spec
    specs = (whole, whole, share)
    on_share = in_microbatches(function, mesh)
    return jax.jit(jax.shard_map(on_share, mesh=mesh, in_specs=specs, out_specs=share, check_vma=False))


def in_microbatches(function: Callable[[Any, jax.Array, Any], Any], mesh: Mesh) -> Callable[[Any, jax.Array, Any], Any]:
    """The same function of (weights, key, examples), which goes through the examples in microbatches."""
    return lambda weights, key, examples: map_microbatches(lambda part: function(weights, key, part), examples, mesh)


class Examples(NamedTuple):
    """A batch of examples, leaves [N, ...]."""

    images: Any  # clean: uint8 [N, H, W, C] for the programs below, float in [0, 1] for those of AutoAttack
    # Int32 [N]: label, number in the data set, and which start of the attack this is.
    labels: Any
    numbers: Any
    starts: Any


Program = Callable[[Weights, jax.Array, Examples], Correctness]


def clean_program(model: Model, threat_model: ThreatModel, mesh: Mesh) -> Program:
    """(weights, key, examples) -> correctness of the images as they are; key and starts are not used."""
    logits_fn = exact_products(model.logits)

    def predict(weights: Weights, key: jax.Array, examples: Examples) -> Correctness:
        del key
        images = to_unit(examples.images)
        return predict_correct(logits_fn(weights, images), images, images, examples.labels, threat_model)

    return on_each_device(predict, mesh)


def attack_program(model: Model, attack: AttackConfig, threat_model: ThreatModel, mesh: Mesh) -> Program:
    """(weights, key, examples) -> correctness of the images as one restart of the attack leaves them.

    Valid means also that no gradient on the way was NaN. BatchNorm is in evaluation mode.
    """
    logits_fn = exact_products(model.logits)

    def predict(weights: Weights, key: jax.Array, examples: Examples) -> Correctness:
        images, labels = to_unit(examples.images), examples.labels
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, examples.numbers)
        (adversarial,), (valid,) = pgd_restarts(
            lambda x: cross_entropy(model.logits(weights, x), labels),
            images,
            threat_model=threat_model,
            key=jax.vmap(jax.random.fold_in)(keys, examples.starts),
            step_size=attack.step_sizes,
            num_steps=attack.num_steps,
            random_start=attack.random_start,
        )
        found = predict_correct(logits_fn(weights, adversarial), adversarial, images, labels, threat_model)
        return found._replace(valid=found.valid & valid)

    return on_each_device(predict, mesh)


class EvaluationInputs(NamedTuple):
    """What is evaluated."""

    weights: Weights  # on all devices
    split: DeviceSplit  # on one device or on all
    key: jax.Array  # of all random starts


class SplitPredictor:
    """Predicts examples of a split, a batch at a time; compiled once for all weights and splits.

    It takes numbers of examples, int32 [N], where N is a multiple of the devices, and returns which are classified
    correctly, bool [N]. It waits for the answer: there is never more than one program under way.
    """

    def __init__(self, model: Model, attack: AttackConfig, mesh: Mesh):
        self._threat_model, self._mesh = ThreatModel(attack.norm, attack.epsilon), mesh
        self._image_shape = model.input_shape
        self._clean = clean_program(model, self._threat_model, mesh)
        self._attack = attack_program(model, attack, self._threat_model, mesh)

    def open(self, weights: Weights, split: DeviceSplit, key: jax.Array) -> EvaluationInputs:
        """Puts weights and key, which may lie on any of the devices, where the programs want them."""
        return EvaluationInputs(jax.device_put(weights, replicated(self._mesh)), split, put_key(key, self._mesh))

    def clean(self, inputs: EvaluationInputs, numbers: np.ndarray) -> np.ndarray:
        """Which clean images are correct; a `ValueError` if their logits are NaN or infinite."""
        found = self._run(self._clean, inputs, numbers, np.zeros_like(numbers))
        _refuse_invalid(found, "clean images get logits that are NaN or infinite")
        return np.asarray(found.correct)

    def attacked(self, inputs: EvaluationInputs, numbers: np.ndarray, restarts: np.ndarray) -> np.ndarray:
        """Which attacked images are correct; a `ValueError` if they left ball or range, or anything is NaN.

        Args:
          restarts: of the attack, int32 [N], for each image its own.
        """
        found = self._run(self._attack, inputs, numbers, restarts)
        ball = f"the {self._threat_model.norm} ball of radius {self._threat_model.epsilon}"
        _refuse_invalid(
            found, f"adversarial images are outside {ball} or outside [0, 1], or their logits or gradients are NaN"
        )
        return np.asarray(found.correct)

    def _run(self, program: Program, inputs: EvaluationInputs, numbers: np.ndarray, starts: np.ndarray) -> Correctness:
        images, labels = _gather(inputs.split, numbers, self._image_shape)
        share = split_over_data(self._mesh)
        images, labels = jax.device_put((images, labels), share)
        examples = Examples(images, labels, put(numbers, share), put(starts, share))
        return fetch(program(inputs.weights, inputs.key, examples), self._mesh)


@functools.partial(jax.jit, static_argnames="image_shape")
def _gather(split: DeviceSplit, numbers: np.ndarray, image_shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Images and labels, where the split lies; the batch is divided among the devices after that."""
    return take_images(split.images, numbers, image_shape), split.labels[numbers]


def _refuse_invalid(found: Correctness, what: str) -> None:
    number = int((~found.valid).sum())
    if number:
        raise ValueError(
            f"{number} {what}; expected none. The weights may be NaN or far too large, or the attack is at fault."
        )
