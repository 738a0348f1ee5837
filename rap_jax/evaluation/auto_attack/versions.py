"""Which attacks make up AutoAttack, in which order.

Croce and Hein, 2020, https://arxiv.org/abs/2003.01690, section 5 and the official implementation:

    standard   APGD-CE, APGD-T and FAB-T with 9 targets, Square with 5,000 queries
    plus       APGD-CE, APGD-DLR and FAB with 5 restarts, Square, APGD-T, FAB-T
    rand       APGD-CE and APGD-DLR, gradients averaged over 20 draws, for randomised networks

Two more that are not theirs:

    strong     the components of standard first, with the same random numbers, so never above it; then Square that
               begins where APGD has ended, 5 restarts. For networks whose gradients mislead
    quick      PMA with 50 steps, and Square with 500 queries from where 50 steps of APGD have ended: a twelfth of the
               passes of standard. Where the search finds what the gradients do not, it is too high: then use strong"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from rap_jax.attacks import ThreatModel
from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.fab import Fab
from rap_jax.attacks.pma import Pma
from rap_jax.attacks.square import HybridSquare, Square
from rap_jax.attacks.stepwise import StepwiseAttack
from rap_jax.attacks.stepwise_pgd import Pgd
from rap_jax.config.checks import require, require_choice

Version = Literal["standard", "plus", "rand", "strong", "quick"]
VERSIONS: tuple[Version, ...] = ("standard", "plus", "rand", "strong", "quick")
# The components of the versions, and PGD; a component's random numbers follow from its place here.
NAMES = (
    ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", "pgd-ce", "pgd-margin")
    + ("square-hybrid", "pma")  # what is new comes last
)
# Where the random numbers of any other name begin. It stays what it was when there were 8 names.
_OTHERS = 8
ORDER: dict[Version, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "strong": ("apgd-ce", "apgd-t", "fab-t", "square", "square-hybrid"),
    "quick": ("pma", "square-hybrid"),
}
MOST_TARGETS = 9
NUM_SAMPLES = 20
_HYBRID_RESTARTS = 5
# Queries, steps of APGD before them, and steps of PMA.
_QUICK_QUERIES, _QUICK_GRADIENTS, _QUICK_STEPS = 500, 50, 50
# Of a radius that is computed in float32, such as 8/255.
_FLOAT32_ROUNDING = 1e-6


class Component(NamedTuple):
    """One attack of the ensemble."""

    name: str
    attack: StepwiseAttack
    least_classes: int = 2  # that its loss needs


def stream_of(name: str) -> int:
    """Of random numbers, which is folded into the key: the same for a name always, another for each name."""
    if name in NAMES:
        return NAMES.index(name)
    return _OTHERS + int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % (2**31 - _OTHERS)


def check_components(
    components: Sequence[Component], *, threat_model: ThreatModel, version: Version
) -> tuple[Component, ...]:
    """The components of a call as they are.

    Raises:
      ValueError: there are none, one is no `Component` of an attack or has another threat model, two have one name, or
        an attack does not call the network as the version does.
    """
    hint = 'a sequence of Component(name, attack), such as (Component("square", Square(threat_model)),)'
    is_sequence = isinstance(components, Iterable) and not isinstance(components, str | Component)
    chosen = tuple(components) if is_sequence else ()
    right = chosen != () and all(isinstance(component, Component) for component in chosen)
    require(right, "components", components, hint)
    for number, component in enumerate(chosen):
        _check_component(component)
        _check_threat_model(component, threat_model)
        _check_samples(component, version)
        twice = component.name in [earlier.name for earlier in chosen[:number]]
        expected = "another name for each: random numbers and results go by the name"
        require(not twice, "components", component.name, expected)
    return chosen


def _check_component(component: Component) -> None:
    named = isinstance(component.name, str) and component.name not in ("", "clean")
    expected = "text other than clean, which is for images that need no attack"
    require(named, "name of a component", component.name, expected)
    attack, protocol = component.attack, ("start", "advance", "num_starts", "num_steps")
    missing = [name for name in protocol if isinstance(attack, type) or not hasattr(attack, name)]
    expected = f"an attack with {', '.join(protocol)}, such as Square(threat_model)"
    require(not missing, f"attack of {component.name}", attack, expected)
    for name, least in (("num_starts", 1), ("num_steps", 0)):
        value = getattr(attack, name)
        whole = isinstance(value, int | np.integer) and value >= least
        require(bool(whole), f"{name} of {component.name}", value, f"a whole number of {least} or more")


def _check_threat_model(component: Component, expected: ThreatModel) -> None:
    """Refuses another radius or norm than those of the call, under which its result would be reported."""
    found = getattr(component.attack, "threat_model", expected)
    same_radius = math.isclose(found.epsilon, expected.epsilon, rel_tol=_FLOAT32_ROUNDING)
    if found.norm != expected.norm or not same_radius:
        raise ValueError(
            f"component {component.name} has {found}; expected {expected}, that of the call: images are broken inside "
            f"one ball, by every component. Give the component the same threat model."
        )


def _check_samples(component: Component, version: Version) -> None:
    """Refuses an attack without draws of a randomised network, and one with draws of another network."""
    never = isinstance(component.attack, Fab | Square | Pgd | Pma)
    samples = getattr(component.attack, "num_samples", 0 if never else None)
    if version == "rand" and samples == 0:
        raise ValueError(
            f"{component.name} has num_samples 0 and calls logits_fn(images); version rand needs num_samples of 1 or "
            f"more, such as Apgd(threat_model, num_samples={NUM_SAMPLES})."
        )
    if version != "rand" and samples:
        raise ValueError(
            f"{component.name} has num_samples {samples} and calls logits_fn(images, key); version {version} needs "
            f'num_samples of 0. A randomised network is for version="rand".'
        )


def components_of(version: Version, *, threat_model: ThreatModel, num_classes: int) -> tuple[Component, ...]:
    """The components of a version for so many classes; their targets are no more than the wrong classes.

    Raises:
      ValueError: an unknown version, or fewer than 2 classes.
    """
    require_choice("version", version, VERSIONS)
    require(num_classes >= 2, "num_classes", num_classes, "2 or more")
    targets = min(MOST_TARGETS, num_classes - 1)
    restarts = 5 if version == "plus" else 1
    samples = NUM_SAMPLES if version == "rand" else 0
    hybrid = HybridSquare(threat_model, num_restarts=_HYBRID_RESTARTS)
    if version == "quick":
        hybrid = HybridSquare(threat_model, _QUICK_QUERIES, gradient_steps=_QUICK_GRADIENTS)
    made: dict[str, Callable[[], Component]] = {
        "apgd-ce": lambda: Component("apgd-ce", Apgd(threat_model, "ce", num_restarts=restarts, num_samples=samples)),
        "apgd-dlr": lambda: Component(
            "apgd-dlr", Apgd(threat_model, "dlr", num_restarts=restarts, num_samples=samples), 3
        ),
        "apgd-t": lambda: Component("apgd-t", Apgd(threat_model, num_targets=targets), 4),
        "fab": lambda: Component("fab", Fab(threat_model, num_restarts=restarts)),
        "fab-t": lambda: Component("fab-t", Fab(threat_model, num_targets=targets)),
        "square": lambda: Component("square", Square(threat_model)),
        "square-hybrid": lambda: Component("square-hybrid", hybrid),
        "pma": lambda: Component("pma", Pma(threat_model, num_steps=_QUICK_STEPS)),
    }
    found = (made[name]() for name in ORDER[version])
    return tuple(component for component in found if component.least_classes <= num_classes)


def num_standard(components: Sequence[Component], *, threat_model: ThreatModel, num_classes: int) -> int:
    """How many components, the first ones, are all of version `standard`, with its settings; 0 if they are not."""
    standard = components_of("standard", threat_model=threat_model, num_classes=num_classes)
    return len(standard) if tuple(components[: len(standard)]) == standard else 0
