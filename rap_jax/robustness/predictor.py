"""What a network makes of a whole sample, clean or perturbed: the last word on every image of an evaluation."""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rap_jax.attacks.stepwise import keys_of
from rap_jax.auto_attack.programs import Judged, Programs
from rap_jax.captured import Captured, lift_captured
from rap_jax.config.evaluation import EvaluationConfig
from rap_jax.robustness.network import AttackedNetwork
from rap_jax.robustness.sample import Sample
from rap_jax.traced import own_mesh, trace

_IMAGES_PER_DEVICE = 128


class Predictions(NamedTuple):
    """Arrays [N].

    Attributes:
      predicted: the class, int32.
      wrong: misclassified.
      margin: of the best wrong logit over the right one.
      size: norm of the perturbation.
    """

    predicted: np.ndarray
    wrong: np.ndarray
    margin: np.ndarray
    size: np.ndarray


class Predictor:
    """One network on one sample, compiled once.

    Args:
      network: whose logits are asked for; it must fit the sample.
      randomized: whether it takes a key; an example then has one draw for all predictions, clean and perturbed.
      batch_size: images at a time, over all devices; 0 chooses.
      on_batch: called after every batch; may raise to stop.
    """

    def __init__(
        self,
        network: AttackedNetwork,
        sample: Sample,
        config: EvaluationConfig,
        mesh: Mesh,
        key: jax.Array,
        *,
        randomized: bool = False,
        batch_size: int = 0,
        on_batch: Callable[[], None] = lambda: None,
    ):
        self.network, self.sample, self.on_batch = network, sample, on_batch
        draw = (key,) if randomized else ()
        own = own_mesh(trace(network.logits_fn, _some(sample.images, network.batch_size or 1), *draw).jaxpr)
        mesh = mesh if own is None else own
        self._size = _batch_size(batch_size or network.batch_size * mesh.size, len(sample.labels), mesh)
        self._key, self._threat = key, f"the {config.norm} ball of radius {config.epsilon:.6g}"
        batch = _some(sample.images, self._size if own is not None else self._size // mesh.size)
        self.programs = Programs(
            *lift_captured(network.logits_fn, batch, *draw),
            mesh,
            epsilon=config.epsilon,
            norm=config.norm,
            randomized=randomized,
            places_itself=own is not None,
        )
        self._program = self.programs.compile(self._answer)

    def batches(self) -> Iterator[tuple[np.ndarray, int]]:
        """Numbers of examples, int32 [B], B always the same, and how many of them count: the last one is repeated."""
        num_examples = len(self.sample.labels)
        for first in range(0, num_examples, self._size):
            numbers = np.arange(first, first + self._size, dtype=np.int32)
            yield numbers.clip(max=num_examples - 1), min(self._size, num_examples - first)

    def predict(self, images: np.ndarray) -> Predictions:
        """What the network says of `images`, float32 [N, H, W, C], which are those of the sample or perturbed ones.

        Raises:
          ValueError: an image has left ball or box, or logits are NaN or infinite.
        """
        found: list[tuple[Judged, np.ndarray]] = []
        for numbers, count in self.batches():
            batch = (self.sample.images[numbers], images[numbers], self.sample.labels[numbers], numbers)
            answers = jax.device_get(self._program(self.programs.captured, self._key, self.programs.split(batch)))
            found.append(jax.tree.map(operator.itemgetter(slice(count)), answers))
            self.on_batch()
        judged, predicted = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
        self._refuse_unsound(~judged.sound)
        return Predictions(predicted, judged.wrong, judged.margin, judged.size)

    def _answer(self, captured: Captured, key: jax.Array, batch: Any) -> tuple[Judged, jax.Array]:
        images, others, labels, numbers = batch
        logits = self.programs.logits(captured, keys_of(key, numbers), others)
        return self.programs.judge_images(images, others, labels, logits), jnp.argmax(logits, -1).astype(jnp.int32)

    def _refuse_unsound(self, unsound: np.ndarray) -> None:
        if unsound.any():
            raise ValueError(
                f"{int(unsound.sum())} images get logits of {self.network.name} that are NaN or infinite, or are "
                f"outside {self._threat} or outside [0, 1]; expected none. The weights may be NaN or far too large, or "
                f"the attack is at fault."
            )


def _some(images: np.ndarray, number: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((number, *images.shape[1:]), np.float32)


def _batch_size(wanted: int, num_examples: int, mesh: Mesh) -> int:
    size = min(wanted or mesh.size * _IMAGES_PER_DEVICE, num_examples)
    return math.ceil(size / mesh.size) * mesh.size
