"""Which attacks make up AutoAttack, in which order.

Croce and Hein, 2020, https://arxiv.org/abs/2003.01690, section 5 and the official implementation:

    standard   APGD-CE, APGD-T and FAB-T with 9 targets, Square with 5,000 queries
    plus       APGD-CE, APGD-DLR and FAB with 5 restarts, Square, APGD-T, FAB-T
    rand       APGD-CE and APGD-DLR, gradients averaged over 20 draws, for randomised networks
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.fab import Fab
from rap_jax.attacks.square import Square
from rap_jax.attacks.stepwise import StepwiseAttack
from rap_jax.config.checks import require, require_choice

Version = Literal["standard", "plus", "rand"]
VERSIONS: tuple[Version, ...] = ("standard", "plus", "rand")
# All parts that there are, PGD beside them; a part's random numbers follow from its place here.
NAMES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", "pgd-ce", "pgd-margin")
MOST_TARGETS = 9
NUM_SAMPLES = 20


class Part(NamedTuple):
    """One attack of the ensemble. Attributes: name; attack; least_classes: that its loss needs."""

    name: str
    attack: StepwiseAttack
    least_classes: int = 2


def parts_of(version: Version, *, epsilon: float, norm: str, num_classes: int) -> tuple[Part, ...]:
    """The parts of a version that can be run with so many classes; their targets are no more than the wrong classes.

    Raises:
      ValueError: an unknown version, or fewer than 2 classes.
    """
    require_choice("version", version, VERSIONS)
    require(num_classes >= 2, "num_classes", num_classes, "2 or more")
    targets = min(MOST_TARGETS, num_classes - 1)
    restarts = 5 if version == "plus" else 1
    samples = NUM_SAMPLES if version == "rand" else 0
    made: dict[str, Callable[[], Part]] = {
        "apgd-ce": lambda: Part("apgd-ce", Apgd(epsilon, norm, "ce", num_restarts=restarts, num_samples=samples)),
        "apgd-dlr": lambda: Part("apgd-dlr", Apgd(epsilon, norm, "dlr", num_restarts=restarts, num_samples=samples), 3),
        "apgd-t": lambda: Part("apgd-t", Apgd(epsilon, norm, num_targets=targets), 4),
        "fab": lambda: Part("fab", Fab(epsilon, norm, num_restarts=restarts)),
        "fab-t": lambda: Part("fab-t", Fab(epsilon, norm, num_targets=targets)),
        "square": lambda: Part("square", Square(epsilon, norm)),
    }
    order = {
        "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
        "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
        "rand": ("apgd-ce", "apgd-dlr"),
    }[version]
    return tuple(part for part in (made[name]() for name in order) if part.least_classes <= num_classes)
