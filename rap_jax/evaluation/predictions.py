"""The images of an evaluation, and a network's predictions on them, clean or perturbed.

Every image of an evaluation gets a fresh prediction in the end; norm and range are checked with it. The sample is the
first images of a split or, where the split is sorted by class, images from all over it.
"""

import hashlib
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.functions import Captured, hoist_closure, own_mesh, trace
from rap_jax.attacks.stepwise import keys_of
from rap_jax.config import EvaluationConfig, require
from rap_jax.data import Dataset, Split, to_unit
from rap_jax.evaluation.auto_attack.programs import Judged, Programs
from rap_jax.evaluation.network import AttackedNetwork


class Sample(NamedTuple):
    """Images, clean.

    Attributes:
      images: float32 in [0, 1], [N, H, W, C].
      labels: int32, [N].
      num_classes: of the data set.
      class_names: name of each label.
      about: what results.json says of the data: the data set, the split, and a hash of these images.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]
    about: dict[str, Any]

    @property
    def words(self) -> str:
        """Which images these are: `first 1,000 test images of mnist`."""
        count, total = len(self.labels), self.about["num_images"][self.about["split"]]
        which = f"all {count:,}" if count == total else f"{self.about['which']} {count:,}"
        return f"{which} {self.about['split']} images of {self.about['name']}"


def take_sample(dataset: Dataset, split: str, num_images: int) -> Sample:
    """The first `num_images` of a split, as is usual; all for 0, or where there are no more.

    Where the images are sorted by class the first ones would be of few classes: then they are evenly spaced.

    Raises:
      ValueError: the split has no images.
    """
    whole: Split = {"test": dataset.test, "validation": dataset.validation}[split]
    total = len(whole.labels)
    require(total > 0, f"number of {split} images", total, "1 or more")
    count = min(num_images or total, total)
    is_sorted = bool((np.diff(np.asarray(whole.labels, np.int32)) >= 0).all()) and count < total
    chosen = np.arange(count) * total // count if is_sorted else np.arange(count)
    images = np.asarray(to_unit(np.asarray(whole.images)[chosen]))
    labels = np.asarray(whole.labels, np.int32)[chosen]
    names = dataset.class_names or tuple(str(label) for label in range(dataset.num_classes))
    content = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    which = "evenly spaced" if is_sorted else "first"
    about = dataset.describe() | {"split": split, "num_attacked": count, "which": which, "attacked_sha256": content}
    return Sample(images, labels, dataset.num_classes, names, about)


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
            *hoist_closure(network.logits_fn, batch, *draw),
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
