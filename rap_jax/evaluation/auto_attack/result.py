"""What AutoAttack found."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from rap_jax.evaluation.accuracy import wilson_interval
from rap_jax.evaluation.auto_attack.record import CLEAN, ROBUST
from rap_jax.evaluation.diagnostics import Finding


class PartResult(NamedTuple):
    """One attack of the ensemble.

    Attributes:
      name: such as `apgd-ce`.
      attacked: examples that were left when it began.
      broken: how many of them it broke.
      robust_accuracy: share of all examples that are left after it.
      seconds: its time, compilation included.
    """

    name: str
    attacked: int
    broken: int
    robust_accuracy: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class AutoAttackResult:
    """Outcome of `auto_attack`; arrays [N] in the order of the images.

    Attributes:
      version, norm, epsilon: as asked for.
      parts: one for each attack that was run.
      broken_by: name of the part that broke the example; `clean` where no attack was needed; empty where it is robust.
      adversarial: float32 [N, ...]; the clean image where no attack broke the example.
      size: norm of the perturbation.
      margin: of the best wrong logit over the right one at `adversarial`: above 0 where misclassified.
      clean_margin: the same at the clean image.
      findings: what should make one doubt the numbers.
    """

    version: str
    norm: str
    epsilon: float
    parts: tuple[PartResult, ...]
    broken_by: np.ndarray
    adversarial: np.ndarray
    size: np.ndarray
    margin: np.ndarray
    clean_margin: np.ndarray
    findings: tuple[Finding, ...] = ()

    @property
    def robust(self) -> np.ndarray:
        """Whether nothing broke the example, bool [N]."""
        return self.broken_by == ""

    @property
    def clean_accuracy(self) -> float:
        """Share of examples whose clean image is right."""
        return float((self.broken_by != "clean").mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of examples that nothing broke: the worst case over all parts, for each example."""
        return float(self.robust.mean())

    def to_json(self) -> dict[str, Any]:
        """Counts, accuracies with their 95% Wilson intervals, settings and findings."""
        total = len(self.broken_by)
        return {
            "attack": f"AutoAttack {self.version}",
            "norm": self.norm,
            "epsilon": self.epsilon,
            "num_examples": total,
            "clean_accuracy": self.clean_accuracy,
            "clean_interval": list(wilson_interval(int((self.broken_by != "clean").sum()), total)),
            "robust_accuracy": self.robust_accuracy,
            "robust_interval": list(wilson_interval(int(self.robust.sum()), total)),
            "parts": [part._asdict() for part in self.parts],
            "findings": [finding._asdict() for finding in self.findings],
        }


def names_of_parts(broken_by: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Numbers of parts, as a `Record` has them, -> names, str [N]."""
    known = {ROBUST: "", CLEAN: "clean"} | dict(enumerate(names, start=1))
    return np.array([known[int(number)] for number in broken_by], dtype=np.str_)
