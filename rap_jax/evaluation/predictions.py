"""The images of an evaluation, and a network's predictions on them, clean or perturbed.

Every image of an evaluation gets a fresh prediction in the end; norm and range are checked with it. The sample is the
first images of a split or, where the split is sorted by class, images from all over it.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.functions import hoist_closure, own_mesh, trace
from rap_jax.attacks import ThreatModel
from rap_jax.config import require
from rap_jax.data import Dataset, Split, to_unit
from rap_jax.evaluation.auto_attack.programs import Programs
from rap_jax.evaluation.correctness import Correctness
from rap_jax.evaluation.network import AttackedNetwork


class Sample(NamedTuple):
    """The images of an evaluation."""

    # Clean, float32 in [0, 1], [N, H, W, C], and int32 [N].
    images: np.ndarray
    labels: np.ndarray
    # Classes of the data set, and the name of each.
    num_classes: int
    class_names: tuple[str, ...]
    about: dict[str, Any]  # what results.json says of the data: the data set, the split, and a hash of these images

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


class Predictor:
    """One network on one sample, which it must fit, compiled once.

    With a randomized one an example has one draw for all predictions, clean and perturbed. `batch_size` is over all
    devices, 0 chooses; `on_batch` is called after every batch and may raise to stop.
    """

    def __init__(
        self,
        network: AttackedNetwork,
        sample: Sample,
        threat_model: ThreatModel,
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
        wanted = batch_size or mesh.size * (network.batch_size or _IMAGES_PER_DEVICE)
        self.batch_size = math.ceil(min(wanted, len(sample.labels)) / mesh.size) * mesh.size
        self.threat_model, self._key = threat_model, key
        batch = _some(sample.images, self.batch_size if own is not None else self.batch_size // mesh.size)
        self.programs = Programs(
            *hoist_closure(network.logits_fn, batch, *draw),
            mesh,
            threat_model=threat_model,
            randomized=randomized,
            places_itself=own is not None,
            fast_on_cpu=network.fast_on_cpu,
        )

    def predict(self, images: np.ndarray) -> Correctness:
        """Correctness of `images`, float32 [N, H, W, C], which are those of the sample or perturbed ones.

        Raises:
          ValueError: an image has left ball or box, or logits are NaN or infinite.
        """
        sample, on_batch = self.sample, self.on_batch
        found = self.programs.predict(
            self._key, images, sample.images, sample.labels, batch_size=self.batch_size, on_batch=on_batch
        )
        if not found.valid.all():
            raise ValueError(
                f"{int((~found.valid).sum())} images get logits of {self.network.name} that are NaN or infinite, or "
                f"are outside the {self.threat_model.norm} ball of radius {self.threat_model.epsilon:.6g} or outside "
                f"[0, 1]; expected none. The weights may be NaN or far too large, or the attack is at fault."
            )
        return found


def _some(images: np.ndarray, number: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((number, *images.shape[1:]), np.float32)
