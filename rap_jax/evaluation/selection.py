"""Accuracies by which the epoch of a run is chosen, from attacks that misleading gradients do not stop.

PGD prefers the epoch whose gradients mislead most: it has more under PGD and no more under AutoAttack. So `strong`
takes the worst case of two attacks, each on the images that nothing has broken so far:

    APGD-T    20 steps on the ratio of logits towards each of the 3 likeliest wrong classes
    Square    200 queries without a gradient

on the first 1,000 images of the split. It takes 60,000 gradients at most and 200,000 forward passes; an epoch of PGD-10
on 54,000 images takes 594,000 gradients.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.mesh import DeviceSplit, fetch, make_mesh, take_images
from rap_jax._runtime.processes import from_first
from rap_jax.attacks import ThreatModel
from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.square import Square
from rap_jax.config import AttackConfig
from rap_jax.config.checks import require
from rap_jax.data.batches import to_unit
from rap_jax.evaluation.accuracy import Accuracy, Evaluator
from rap_jax.evaluation.auto_attack.programs import AttackPrograms, Programs
from rap_jax.evaluation.auto_attack.slots import Slots, num_slots_of
from rap_jax.evaluation.auto_attack.versions import Component, stream_of
from rap_jax.models import Model
from rap_jax.models.model import Weights

NUM_IMAGES = 1000
_APGD_STEPS, _NUM_TARGETS, _NUM_QUERIES = 20, 3, 200
# Forward passes for an image that nothing breaks; a backward pass counts as one.
NUM_PASSES = 1 + 2 * _APGD_STEPS * _NUM_TARGETS + _NUM_QUERIES


def selection_components(threat_model: ThreatModel, num_classes: int) -> tuple[Component, ...]:
    """The attacks of `strong`, in their order; with fewer than 4 classes there is no ratio, but cross-entropy."""
    first = Component("apgd-ce", Apgd(threat_model, "ce", num_steps=_APGD_STEPS))
    if num_classes > 3:
        first = Component("apgd-t", Apgd(threat_model, num_steps=_APGD_STEPS, num_targets=_NUM_TARGETS))
    return first, Component("square", Square(threat_model, num_steps=_NUM_QUERIES))


def make_strong_evaluator(model: Model, attack: AttackConfig, mesh: Mesh) -> Evaluator:
    """Builds `evaluate(params, batch_stats, split, key, on_batch=None) -> Accuracy`, compiled once for all its calls.

    Natural and robust accuracy are those of the first `NUM_IMAGES` images of the split, in evaluation mode. Of several
    processes each computes on its own devices, and the counts of the first one hold.

    Args:
      attack: whose norm and radius hold; nothing else of it is read.

    `evaluate` raises a `ValueError` for an empty split, and for logits or gradients that are NaN.
    """
    threat_model = ThreatModel(attack.norm, attack.epsilon)
    made = functools.cache(lambda key: _Worst(model, threat_model, mesh, jax.random.wrap_key_data(jnp.uint32(key))))

    def evaluate(
        params: chex.ArrayTree,
        batch_stats: chex.ArrayTree,
        split: DeviceSplit,
        key: jax.Array,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> Accuracy:
        weights, tell = fetch(Weights(params, batch_stats), mesh), on_batch or (lambda done, total: None)
        worst = made(tuple(jax.random.key_data(key).tolist()))
        natural, robust, total = from_first(lambda: worst.count(weights, *_first_images(model, split), tell))
        return Accuracy(natural, robust, total, attack)

    return evaluate


class _Worst:
    """The attacks on one network, compiled once; `key` decides everything random in them."""

    def __init__(self, model: Model, threat_model: ThreatModel, mesh: Mesh, key: jax.Array):
        own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
        self._mesh, self._key = make_mesh(own), key
        self._components = selection_components(threat_model, model.num_classes)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        logits_fn = lambda leaves, images: model.logits(jax.tree.unflatten(jax.tree.structure(shapes), leaves), images)
        self._programs = Programs(logits_fn, [], self._mesh, threat_model=threat_model, randomized=False)
        self._attacks = [
            self._programs.of_attack(one.attack, jax.random.fold_in(key, stream_of(one.name)))
            for one in self._components
        ]

    def count(
        self, weights: Weights, images: np.ndarray, labels: np.ndarray, tell: Callable[[int, int], None]
    ) -> tuple[int, int, int]:
        """How many images are right, how many stay right under every attack, and how many there are."""
        self._programs.replace_captured(jax.tree.leaves(weights))
        num_slots = num_slots_of(0, len(images), self._mesh)
        clean = self._programs.predict(self._key, images, images, labels, batch_size=num_slots)
        bad = int((~clean.valid).sum())
        if bad:
            raise ValueError(f"{bad} clean images get logits that are NaN or infinite; expected finite ones.")
        robust = np.flatnonzero(clean.correct).astype(np.int32)
        natural = len(robust)
        for one, programs in zip(self._components, self._attacks, strict=True):
            robust = self._survivors(one, programs, images, labels, robust)
            tell(len(images) - len(robust), len(images))
        return natural, len(robust), len(images)

    def _survivors(
        self, one: Component, programs: AttackPrograms, images: np.ndarray, labels: np.ndarray, examples: np.ndarray
    ) -> np.ndarray:
        attack, broken = one.attack, list[np.ndarray]()
        most = num_slots_of(0, len(images), self._mesh)
        slots = Slots(
            programs, images, labels, num_rows=1, num_slots=most, num_steps=attack.num_steps,
            num_starts=attack.num_starts,
        )  # fmt: skip
        slots.run(examples, np.zeros(len(examples), np.int32), lambda found: broken.append(found.broken))
        return np.setdiff1d(examples, np.concatenate([examples[:0], *broken])).astype(np.int32)


def _first_images(model: Model, split: DeviceSplit) -> tuple[np.ndarray, np.ndarray]:
    """Images in [0, 1] and labels of the first images of a split, on the host."""
    numbers = np.arange(min(NUM_IMAGES, len(split.labels)))
    require(len(numbers) > 0, "number of images", 0, "1 or more in the split that chooses the epoch")
    images = to_unit(np.asarray(take_images(split.images, numbers, model.input_shape)))
    return np.asarray(images), np.asarray(split.labels[numbers], np.int32)
