"""The worst case over all attacks, for each example: what counts, and by what it was broken first."""

import io
from typing import Any, NamedTuple, Self

import numpy as np

from rap_jax.diagnostics import Finding
from rap_jax.interval import wilson_interval
from rap_jax.robustness.predictor import Predictions

CLEAN = "clean"


class Attack(NamedTuple):
    """What one attack has left.

    Attributes:
      name: `PGD, any step`, `AutoAttack standard`, `transfer from NAME`.
      broken_by: name of the part that broke the example; empty where none did, str [N].
      adversarial: the image by which it did, float32 [N, H, W, C].
      about: settings, parts and time, for results.json.
      findings: what it gives away.
    """

    name: str
    broken_by: np.ndarray
    adversarial: np.ndarray
    about: dict[str, Any]
    findings: tuple[Finding, ...] = ()

    def claimed(self, clean: Predictions) -> np.ndarray:
        """Which examples it says that it broke, bool [N]."""
        return ~np.isin(self.broken_by, ("", CLEAN)) & ~clean.wrong


class WorstCase(NamedTuple):
    """Arrays [N], of all attacks together.

    Attributes:
      broken_by: name of the first part that broke the example; `clean` where no attack was needed; empty where it is
        robust.
      adversarial: by which image; the clean one where no attack broke it.
      predictions: of these images.
    """

    broken_by: np.ndarray
    adversarial: np.ndarray
    predictions: Predictions

    @classmethod
    def begin(cls, images: np.ndarray, clean: Predictions) -> Self:
        """Before any attack."""
        return cls(np.where(clean.wrong, CLEAN, ""), images, clean)

    @property
    def robust(self) -> np.ndarray:
        """Whether nothing broke the example, bool [N]."""
        return self.broken_by == ""

    def with_attack(self, attack: Attack, broken: np.ndarray, again: Predictions) -> Self:
        """Takes in the examples that an attack broke and those before it did not; `again` are its predictions."""
        new = broken & self.robust
        pairs = zip(again, self.predictions, strict=True)
        return self._replace(
            broken_by=np.where(new, attack.broken_by, self.broken_by),
            adversarial=np.where(new[:, None, None, None], attack.adversarial, self.adversarial),
            predictions=Predictions(*(np.where(new, now, before) for now, before in pairs)),
        )

    def to_npz(self, labels: np.ndarray, clean: Predictions) -> bytes:
        """All that is known of each example, as the bytes of a .npz file."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            index=np.arange(len(labels), dtype=np.int32),
            label=labels,
            clean_prediction=clean.predicted,
            clean_margin=clean.margin,
            broken_by=self.broken_by,
            prediction=self.predictions.predicted,
            margin=self.predictions.margin,
            size=self.predictions.size,
            adversarial=self.adversarial.astype(np.float32),
        )
        return buffer.getvalue()

    def sizes(self) -> dict[str, float] | None:
        """Norms of the perturbations that broke an example: least, median, largest; None if there is none."""
        found = self.predictions.size[~np.isin(self.broken_by, ("", CLEAN))]
        if not found.size:
            return None
        return {"least": float(found.min()), "median": float(np.median(found)), "largest": float(found.max())}


def accuracy_of(right: np.ndarray, kind: str = "robust") -> dict[str, Any]:
    """Share, 95% Wilson interval and counts of what is `right`, bool [N]; keys as in results.json of a run."""
    count, total = int(right.sum()), len(right)
    return {
        f"{kind}_accuracy": count / total,
        f"{kind}_interval": list(wilson_interval(count, total)),
        f"{kind}_correct": count,
        "num_examples": total,
    }
