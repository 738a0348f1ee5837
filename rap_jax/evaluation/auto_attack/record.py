"""What is known of each example while AutoAttack runs, on the host and on disk."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from rap_jax._runtime.integrity import difference, unreadable, write_atomically
from rap_jax.evaluation.auto_attack.slots import Found

ROBUST, CLEAN = -1, 0
# Two runs of one network on other devices differ by rounding; two networks differ by more.
_SAME_MARGIN = 1e-2


class Record(NamedTuple):
    """Arrays [N], changed in place.

    Attributes:
      broken_by: int8; -1 while nothing has broken the example, 0 where the clean image is misclassified, else the
        number of the part that broke it, from 1.
      adversarial: float32 [N, ...]; the clean image where no part broke the example.
      clean_margin: of the best wrong logit over the right one, at the clean image.
      margin: the same at `adversarial`.
      size: norm of the perturbation.
      survived: starts of the part in progress that the example has survived, int32.
    """

    broken_by: np.ndarray
    adversarial: np.ndarray
    clean_margin: np.ndarray
    margin: np.ndarray
    size: np.ndarray
    survived: np.ndarray

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

    def add(self, found: Found, part: int) -> None:
        """Takes in what a look at the slots of a part has shown."""
        self.broken_by[found.broken] = part
        self.adversarial[found.broken] = found.adversarial
        self.margin[found.broken] = found.margin
        self.size[found.broken] = found.size
        self.survived[found.survived] += 1


class Saved(NamedTuple):
    """A record on disk. Attributes: record; part: in progress, from 1; seconds: spent on each part so far."""

    record: Record
    part: int
    seconds: dict[str, float]


def save(path: Path, saved: Saved, identity: dict[str, Any]) -> None:
    """Writes all of it to `path`, whole or not at all; images only where they are no longer clean."""
    changed = saved.record.broken_by > CLEAN
    arrays = saved.record._asdict() | {"adversarial": saved.record.adversarial[changed]}
    about = {"identity": identity, "part": saved.part, "seconds": saved.seconds}
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
    write_atomically(path, buffer.getvalue())


def load(path: Path, images: np.ndarray, clean_margin: np.ndarray, identity: dict[str, Any]) -> Saved:
    """Reads what `save` wrote.

    Args:
      path: the file.
      images: clean, [N, ...].
      clean_margin: of the network as it is now, by which it is recognised.
      identity: of this evaluation.

    Raises:
      ValueError: the file is damaged, or is that of another evaluation or network.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        about = json.loads(str(arrays.pop("about")))
        record = Record(**arrays)._replace(adversarial=images.copy())
        record.adversarial[record.broken_by > CLEAN] = arrays["adversarial"]
        saved = Saved(record, int(about["part"]), dict(about["seconds"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise unreadable(path, error, "delete it to begin anew") from error
    expected = json.loads(json.dumps(identity))
    if about["identity"] != expected:
        raise ValueError(
            f"{path} holds another evaluation:\n{difference(about['identity'], expected)}\n"
            f"Name another file, or move it away to begin anew."
        )
    if not np.allclose(record.clean_margin, clean_margin, rtol=_SAME_MARGIN, atol=_SAME_MARGIN):
        raise ValueError(
            f"{path} was made with another network, or computed otherwise, such as with another "
            f"JAX_DEFAULT_MATMUL_PRECISION; expected margins of the clean images within {_SAME_MARGIN}. Name another "
            f"file, or move it away to begin anew."
        )
    return saved
