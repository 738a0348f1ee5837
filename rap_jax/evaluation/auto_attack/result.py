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

    name: str  # such as `apgd-ce`
    attacked: int  # examples that were left when it began
    broken: int  # how many of them it broke
    robust_accuracy: float  # share of all examples that are left after it
    seconds: float  # its time, compilation included
    random_search: bool = False  # whether it is Square, from stripes or from where APGD has ended


@dataclasses.dataclass(frozen=True)
class AutoAttackResult:
    """Outcome of `auto_attack`; arrays [N] in the order of the images."""

    # As asked for.
    version: str
    threat_model: ThreatModel
    components: tuple[ComponentResult, ...]  # one for each attack that was run
    # Name of the component that broke the example; `clean` where no attack was needed; empty where it is robust.
    broken_by: np.ndarray
    adversarial: np.ndarray  # float32 [N, ...]; the clean image where no attack broke the example
    size: np.ndarray  # norm of the perturbation
    margin: np.ndarray  # of the best wrong logit over the right one at `adversarial`: above 0 where misclassified
    clean_margin: np.ndarray  # the same at the clean image
    num_standard: int = 0  # of the components, the first ones: all of version `standard`; 0 if they are not
    findings: tuple[Finding, ...] = ()  # what should make one doubt the numbers

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

    @property
    def standard_accuracy(self) -> float | None:
        """Robust accuracy under version `standard`, with which `strong` begins; None if it was not run."""
        return self.components[self.num_standard - 1].robust_accuracy if self.num_standard else None

    @property
    def masked_share(self) -> float:
        """Share of examples that random search broke after the attacks by gradients before it had failed.

        How far the gradients of the network mislead; near 0 where they do not.
        """
        gradients = [not component.random_search for component in self.components]
        found = [
            component.broken
            for number, component in enumerate(self.components)
            if component.random_search and any(gradients[:number])
        ]
        return sum(found) / len(self.broken_by)

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
            "standard_accuracy": self.standard_accuracy,
            "masked_share": self.masked_share,
            "parts": [component._asdict() for component in self.components],
            "findings": [finding._asdict() for finding in self.findings],
        }


def component_names(broken_by: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Numbers of components, as a `Record` has them, -> names, str [N]."""
    known = {ROBUST: "", CLEAN: "clean"} | dict(enumerate(names, start=1))
    return np.array([known[int(number)] for number in broken_by], dtype=np.str_)
