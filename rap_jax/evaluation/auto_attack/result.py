"""What AutoAttack found."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from rap_jax.attacks import ThreatModel
from rap_jax.evaluation.accuracy import wilson_interval
from rap_jax.evaluation.auto_attack.record import CLEAN, ROBUST
from rap_jax.evaluation.diagnostics import Finding


class ComponentResult(NamedTuple):
    """One attack of the ensemble."""

    # Such as `apgd-ce`.
    name: str
    # Examples that were left when it began.
    attacked: int
    # How many of them it broke.
    broken: int
    # Share of all examples that are left after it.
    robust_accuracy: float
    # Its time, compilation included.
    seconds: float


@dataclasses.dataclass(frozen=True)
class AutoAttackResult:
    """Outcome of `auto_attack`; arrays [N] in the order of the images."""

    # As asked for.
    version: str
    threat_model: ThreatModel
    # One for each attack that was run.
    components: tuple[ComponentResult, ...]
    # Name of the component that broke the example; `clean` where no attack was needed; empty where it is robust.
    broken_by: np.ndarray
    # Float32 [N, ...]; the clean image where no attack broke the example.
    adversarial: np.ndarray
    # Norm of the perturbation.
    size: np.ndarray
    # Of the best wrong logit over the right one at `adversarial`: above 0 where misclassified.
    margin: np.ndarray
    # The same at the clean image.
    clean_margin: np.ndarray
    # What should make one doubt the numbers.
    findings: tuple[Finding, ...] = ()

    @property
    def robust(self) -> np.ndarray:
        """Whether nothing broke the example, bool [N]."""
        return self.broken_by == ""

    @property
    def broken(self) -> np.ndarray:
        """Whether `adversarial` is misclassified, bool [N]; so too where the clean image is."""
        return ~self.robust

    @property
    def clean_accuracy(self) -> float:
        """Share of examples whose clean image is right."""
        return float((self.broken_by != "clean").mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of examples that nothing broke: the worst case over all components, for each example."""
        return float(self.robust.mean())

    def to_json(self) -> dict[str, Any]:
        """Counts, accuracies with their 95% Wilson intervals, settings and findings."""
        total = len(self.broken_by)
        return {
            "attack": f"AutoAttack {self.version}",
            "norm": self.threat_model.norm,
            "epsilon": self.threat_model.epsilon,
            "num_examples": total,
            "clean_accuracy": self.clean_accuracy,
            "clean_interval": list(wilson_interval(int((self.broken_by != "clean").sum()), total)),
            "robust_accuracy": self.robust_accuracy,
            "robust_interval": list(wilson_interval(int(self.robust.sum()), total)),
            "parts": [component._asdict() for component in self.components],
            "findings": [finding._asdict() for finding in self.findings],
        }


def component_names(broken_by: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Numbers of components, as a `Record` has them, -> names, str [N]."""
    known = {ROBUST: "", CLEAN: "clean"} | dict(enumerate(names, start=1))
    return np.array([known[int(number)] for number in broken_by], dtype=np.str_)
