"""What is known of each example while AutoAttack runs, on the host and on disk."""

import json
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from rap_jax._runtime.integrity import as_npz, difference, open_npz, write_atomically
from rap_jax.evaluation.auto_attack.slots import Found

ROBUST, CLEAN = -1, 0


class Record(NamedTuple):
    """Arrays [N], changed in place."""

    # Int8; -1 while nothing has broken the example, 0 where the clean image is misclassified, else the number of the
    # component that broke it, from 1.
    broken_by: np.ndarray
    adversarial: np.ndarray  # float32 [N, ...]; the clean image where no component broke the example
    clean_margin: np.ndarray  # of the best wrong logit over the right one, at the clean image
    margin: np.ndarray  # the same at `adversarial`
    size: np.ndarray  # norm of the perturbation
    survived: np.ndarray  # starts of the component in progress that the example has survived, int32

    @classmethod
    def begin(cls, images: np.ndarray, wrong: np.ndarray, margin: np.ndarray) -> Self:
        """Before any attack: `wrong`, bool [N], and `margin`, float [N], are those of the clean images."""
        return cls(
            broken_by=np.where(wrong, CLEAN, ROBUST).astype(np.int8),
            adversarial=images.copy(),
            clean_margin=margin.copy(),
            margin=margin.copy(),
            size=np.zeros(len(images), np.float32),
            survived=np.zeros(len(images), np.int32),
        )

    @property
    def robust(self) -> np.ndarray:
        """Numbers of the examples that nothing has broken so far, int32."""
        return np.flatnonzero(self.broken_by == ROBUST).astype(np.int32)

    def add(self, found: Found, component: int) -> None:
        """Takes in what a look at the slots of a component has shown."""
        self.broken_by[found.broken] = component
        self.adversarial[found.broken] = found.adversarial
        self.margin[found.broken] = found.margin
        self.size[found.broken] = found.size
        self.survived[found.survived] += 1


class Saved(NamedTuple):
    """A record on disk."""

    record: Record
    component: int  # in progress, from 1
    seconds: dict[str, float]  # spent on each component so far


def save(path: Path, saved: Saved, identity: dict[str, Any]) -> None:
    """Writes all of it to `path`, whole or not at all; images only where they are no longer clean."""
    changed = saved.record.broken_by > CLEAN
    arrays = saved.record._asdict() | {"adversarial": saved.record.adversarial[changed]}
    about = {"identity": identity, "part": saved.component, "seconds": saved.seconds}
    write_atomically(path, as_npz({"about": np.array(json.dumps(about))} | arrays))


def load(path: Path, images: np.ndarray, identity: dict[str, Any]) -> Saved:
    """Reads what `save` wrote of the evaluation of the clean `images` [N, ...] with this identity.

    Raises:
      ValueError: the file is damaged, or is that of another evaluation or network.
    """
    with open_npz(path, "delete it to begin anew") as found:
        arrays = dict(found)
        about = json.loads(str(arrays.pop("about")))
        record = Record(**arrays)._replace(adversarial=images.copy())
        record.adversarial[record.broken_by > CLEAN] = arrays["adversarial"]
        saved = Saved(record, int(about["part"]), dict(about["seconds"]))
    expected = json.loads(json.dumps(identity))
    if about["identity"] != expected:
        raise ValueError(
            f"{path} holds another evaluation:\n{difference(about['identity'], expected)}\n"
            f"Name another file, or move it away to begin anew."
        )
    return saved
