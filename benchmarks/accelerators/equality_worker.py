"""The accelerator against the CPU of the same process, with exact products there: what one network computes on both.

python -m benchmarks.accelerators.equality_worker CASE_AS_JSON

Weights are random and so are the images. The form of the layers is the same on both.
"""

import json
import math
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerators.equality import EqualityCase
from benchmarks.accelerators.process import serve_object
from benchmarks.parity.compare import Bar, share_bar
from benchmarks.rows import Row
from benchmarks.worker import Answer
from rap_jax.attacks import ThreatModel, pgd
from rap_jax.attacks.losses import cross_entropy, margin
from rap_jax.compaction import compact
from rap_jax.compaction.cut import cut
from rap_jax.config import ModelConfig
from rap_jax.evaluation.auto_attack import auto_attack
from rap_jax.evaluation.auto_attack.versions import components_of
from rap_jax.models import Model, create_model
from rap_jax.models.model import Weights
from rap_jax.pruning.layers import kernels
from rap_jax.pruning.projections import Column, Filter, Irregular, mask
from rap_jax.pruning.specs import specs_from_patterns

_PGD_STEPS = 10
_SAME_PIXEL = 1e-6
_MULTIPLES = (1, 1.25, 1.5, 2, 2.5, 3, 4, 6)


class Tolerance(NamedTuple):
    """Limits for one kind of products; of relative errors, and of shares that agree at least.

    TF32 rounds factors to 11 bits, 5e-4. A sign of a gradient that is nearly zero flips with any rounding, and the
    steps of PGD that follow are others: the loss tells whether they are as good.
    """

    logits: float
    gradient: float
    pixels: float
    loss: float
    flags: float


TOLERANCES = {"default": Tolerance(2e-3, 1e-1, 0.4, 5e-3, 0.85), "highest": Tolerance(1e-5, 1e-3, 0.98, 1e-5, 0.93)}


class Outputs(NamedTuple):
    """What a network computes, as NumPy arrays. Attributes: logits, gradient, adversarial of PGD, loss of those."""

    logits: np.ndarray
    gradient: np.ndarray
    adversarial: np.ndarray
    loss: np.ndarray


class Equality:
    """One network on the CPU and on the accelerator."""

    def __init__(self, case: EqualityCase):
        self._case, self._row = case, Row("", case.network, case.width, case.num_images, _PGD_STEPS)
        shape, config = self._row.input_shape, ModelConfig(case.network, case.width)
        self._model = create_model(config, input_shape=shape, num_classes=10, implementation="xla")
        # The last device: on a machine that has CPUs alone, another one than the first where there are several.
        self._cpu, self._device = jax.devices("cpu")[0], jax.devices()[-1]
        with jax.default_device(self._cpu):
            self._weights: Weights = jax.device_get(jax.jit(self._model.init)(jax.random.key(0)))
        self._images = np.random.default_rng(0).random((case.num_images, *shape), np.float32)
        self._labels = np.arange(case.num_images, dtype=np.int32) % 10

    def functions(self) -> Answer:
        """Logits, image gradients, PGD, projections and compaction."""
        exact = self._outputs(self._cpu, "highest")
        bars = [self._projection_bar(spec) for spec in (Irregular(0.5), Column(0.5), Filter(0.5))]
        small = self._compacted()
        for products in self._case.products:
            limits, found = TOLERANCES[products], self._outputs(self._device, products)
            same = np.abs(found.adversarial - exact.adversarial) < _SAME_PIXEL
            bars += [
                Bar("logits", _error(found.logits, exact.logits), limits.logits, attack=products),
                Bar("image gradient", _error(found.gradient, exact.gradient), limits.gradient, attack=products),
                share_bar("equal pixels of PGD's images", same, limits.pixels, products),
                Bar("loss of PGD's images", _error(found.loss, exact.loss), limits.loss, attack=products),
                self._compaction_bar(small, products),
            ]
        return {"bars": [_as_json(bar) for bar in bars]}

    def auto_attack(self) -> Answer:
        """Whether AutoAttack breaks the same images; the radius is such that it breaks about half of them."""
        exact, bars = self._robust(self._cpu, "highest"), list[Bar]()
        shares = {"cpu": float(exact.mean())}
        for products in self._case.products:
            robust = self._robust(self._device, products)
            shares[products] = float(robust.mean())
            bars.append(share_bar("equal flags of AutoAttack", robust == exact, TOLERANCES[products].flags, products))
        return {"bars": [_as_json(bar) for bar in bars], "robust": shares, "num_images": self._case.num_attacked}

    def _outputs(self, device: jax.Device, products: str) -> Outputs:
        model, attack = self._model, self._row.attack

        def outputs(weights: Weights, images: jax.Array, labels: jax.Array) -> Outputs:
            logits_fn = lambda x: model.logits(weights, x)
            gradient = jax.grad(lambda x: cross_entropy(logits_fn(x), labels).sum())(images)
            threat_model, key = ThreatModel(attack.norm, attack.epsilon), jax.random.key(1)
            settings: dict[str, Any] = {"step_size": attack.epsilon / 4, "num_steps": _PGD_STEPS}
            moved = pgd(logits_fn, images, labels, threat_model=threat_model, key=key, **settings).adversarial
            leaves: Any = (logits_fn(images), gradient, moved, cross_entropy(logits_fn(moved), labels))
            return Outputs(*leaves)

        with jax.default_matmul_precision(products):
            arguments = jax.device_put((self._weights, self._images, self._labels), device)
            return jax.device_get(jax.jit(outputs)(*arguments))

    def _projection_bar(self, spec: Irregular | Column | Filter) -> Bar:
        """Numbers of masks that differ, over all kernels."""
        leaves = [kernel for _, kernel in kernels(self._weights.params)]
        project = jax.jit(lambda leaves: [mask(spec, kernel) for kernel in leaves])
        ours, theirs = (jax.device_get(project(jax.device_put(leaves, d))) for d in (self._device, self._cpu))
        different = sum(int((one != other).sum()) for one, other in zip(ours, theirs, strict=True))
        return Bar(f"{type(spec).__name__.lower()} projection, masks that differ", different, 0, format=".0f")

    def _compacted(self) -> tuple[Weights, Model, Weights]:
        """Half of the filters of every layer cut, as weights of the network, and without them."""
        specs = specs_from_patterns(
            [("*", 0.5)], self._weights.params, structure="filter", output_layer=self._model.output_layer
        )
        with jax.default_device(self._cpu):
            pruned: Weights = jax.device_get(cut(specs, self._model, self._weights))
            small = compact(self._model, *pruned)
        return pruned, small.model, small.weights

    def _compaction_bar(self, networks: tuple[Weights, Model, Weights], products: str) -> Bar:
        """Largest difference of logits over the largest logit, both on the accelerator."""
        pruned, small, weights = networks
        images = jax.device_put(self._images, self._device)
        with jax.default_matmul_precision(products):
            dense = np.asarray(jax.jit(self._model.logits)(jax.device_put(pruned, self._device), images))
            compacted = np.asarray(jax.jit(small.logits)(jax.device_put(weights, self._device), images))
        error = float(np.abs(dense - compacted).max() / np.abs(dense).max())
        return Bar("logits after compaction", error, TOLERANCES[products].logits, attack=products)

    def _robust(self, device: jax.Device, products: str) -> np.ndarray:
        images = self._images[: self._case.num_attacked]
        labels, epsilon = self._attack_task(images)
        logits_fn, threat_model = lambda x: self._model.logits(self._weights, x), ThreatModel("linf", epsilon)
        components = components_of("standard", threat_model=threat_model, num_classes=10)[: self._case.num_components]
        with jax.default_matmul_precision(products):
            return auto_attack(
                logits_fn,
                images,
                labels,
                threat_model=threat_model,
                key=jax.random.key(2),
                components=components,
                devices=[device],
                diagnostics=False,
            ).robust

    def _attack_task(self, images: np.ndarray) -> tuple[np.ndarray, float]:
        """Labels by which every image is right, and a radius at which PGD breaks half of them, by the CPU.

        Tried are multiples of the median distance to another class of the linearised network.
        """
        model = self._model

        def task(weights: Weights, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            labels = model.logits(weights, x).argmax(-1)
            margins = lambda x: margin(model.logits(weights, x), labels)
            slopes = jnp.abs(jax.grad(lambda x: margins(x).sum())(x)).reshape(len(x), -1).sum(1)
            return labels, jnp.median(-margins(x) / slopes)

        def share_broken(weights: Weights, x: jax.Array, labels: jax.Array, epsilon: jax.Array) -> jax.Array:
            threat_model, key = ThreatModel("linf", epsilon), jax.random.key(3)
            settings: dict[str, Any] = {"step_size": epsilon / 4, "num_steps": _PGD_STEPS, "loss": margin}
            logits_fn = lambda x: model.logits(weights, x)
            return pgd(logits_fn, x, labels, threat_model=threat_model, key=key, **settings).broken.mean()

        with jax.default_matmul_precision("highest"):
            arguments = jax.device_put((self._weights, images), self._cpu)
            labels, distance = jax.jit(task)(*arguments)
            share = jax.jit(share_broken)
            radii = (multiple * distance for multiple in _MULTIPLES)
            epsilon = next(
                (radius for radius in radii if share(*arguments, labels, radius) >= 0.5), _MULTIPLES[-1] * distance
            )
        return np.asarray(labels), min(float(epsilon), 1.0)


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    """Relative error in the Euclidean norm."""
    difference, size = (float(np.linalg.norm(np.asarray(array, np.float64))) for array in (found - exact, exact))
    return difference / max(size, 1e-30)


def _as_json(bar: Bar) -> Answer:
    value = bar.value if math.isfinite(bar.value) else None
    words = {"what": bar.name, "products": bar.attack, "found": f"{bar.value:{bar.format}}"}
    return words | {"value": value, "tolerance": bar.limit_in_words, "holds": bar.passed}


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    case = EqualityCase(**settings | {"products": tuple(settings["products"])})
    serve_object(lambda: Equality(case), "functions", "auto_attack")
