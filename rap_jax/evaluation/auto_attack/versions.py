"""Which attacks make up AutoAttack, in which order.

Croce and Hein, 2020, https://arxiv.org/abs/2003.01690, section 5 and the official implementation:

    standard   APGD-CE, APGD-T and FAB-T with 9 targets, Square with 5,000 queries
    plus       APGD-CE, APGD-DLR and FAB with 5 restarts, Square, APGD-T, FAB-T
    rand       APGD-CE and APGD-DLR, gradients averaged over 20 draws, for randomised networks"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.fab import Fab
from rap_jax.attacks.square import Square
from rap_jax.attacks.stepwise import StepwiseAttack
from rap_jax.attacks.stepwise_pgd import Pgd
from rap_jax.config.checks import require, require_choice

Version = Literal["standard", "plus", "rand"]
VERSIONS: tuple[Version, ...] = ("standard", "plus", "rand")
# The parts of the versions, and PGD; a part's random numbers follow from its place here.
NAMES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", "pgd-ce", "pgd-margin")
MOST_TARGETS = 9
NUM_SAMPLES = 20
# Of a radius that is computed in float32, such as 8/255.
_FLOAT32_ROUNDING = 1e-6


class Part(NamedTuple):
    """One attack of the ensemble. Attributes: name; attack; least_classes: that its loss needs."""

    name: str
    attack: StepwiseAttack
    least_classes: int = 2


def stream_of(name: str) -> int:
    """Of random numbers, which is folded into the key: the same for a name always, another for each name."""
    if name in NAMES:
        return NAMES.index(name)
    return len(NAMES) + int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % (2**31 - len(NAMES))


def check_parts(parts: Sequence[Part], *, epsilon: float, norm: str, version: Version) -> tuple[Part, ...]:
    """The parts as they are.

    Args:
      parts: of the call.
      epsilon, norm: of the call, which those of every part must equal.
      version: of the call; with `rand` the network takes a key, and the attacks must give it one.

    Raises:
      ValueError: there are none, one is no `Part` of an attack or has another radius or norm, two have one name, or
        an attack does not call the network as the version does.
    """
    hint = 'a sequence of Part(name, attack), such as (Part("square", Square(epsilon)),)'
    is_sequence = isinstance(parts, Iterable) and not isinstance(parts, str | Part)
    chosen = tuple(parts) if is_sequence else ()
    require(chosen != () and all(isinstance(part, Part) for part in chosen), "parts", parts, hint)
    for number, part in enumerate(chosen):
        _check_part(part)
        _check_threat(part, epsilon, norm)
        _check_samples(part, version)
        twice = part.name in [earlier.name for earlier in chosen[:number]]
        require(not twice, "parts", part.name, "another name for each: random numbers and results go by the name")
    return chosen


def _check_part(part: Part) -> None:
    named = isinstance(part.name, str) and part.name not in ("", "clean")
    require(named, "name of a part", part.name, "text other than clean, which is for images that need no attack")
    attack, protocol = part.attack, ("start", "advance", "num_starts", "num_steps")
    missing = [name for name in protocol if isinstance(attack, type) or not hasattr(attack, name)]
    require(not missing, f"attack of {part.name}", attack, f"an attack with {', '.join(protocol)}, such as Square(0.3)")
    for name, least in (("num_starts", 1), ("num_steps", 0)):
        value = getattr(attack, name)
        whole = isinstance(value, int | np.integer) and value >= least
        require(bool(whole), f"{name} of {part.name}", value, f"a whole number of {least} or more")


def _check_threat(part: Part, epsilon: float, norm: str) -> None:
    """Refuses another radius or norm than those of the call, under which its result would be reported."""
    of_part = {name: getattr(part.attack, name, None) for name in ("epsilon", "norm")}
    if of_part["epsilon"] is not None and not math.isclose(of_part["epsilon"], epsilon, rel_tol=_FLOAT32_ROUNDING):
        raise ValueError(_other_threat(part, "epsilon", float(of_part["epsilon"]), epsilon))
    if of_part["norm"] not in (None, norm):
        raise ValueError(_other_threat(part, "norm", of_part["norm"], norm))


def _other_threat(part: Part, name: str, found: Any, expected: Any) -> str:
    hint = "images are broken inside one ball, by every part. Give the part the same"
    return f"part {part.name} has {name} {found}; expected {expected}, that of the call: {hint} {name}."


def _check_samples(part: Part, version: Version) -> None:
    """Refuses an attack without draws of a randomised network, and one with draws of another network."""
    never = isinstance(part.attack, Fab | Square | Pgd)
    samples = getattr(part.attack, "num_samples", 0 if never else None)
    if version == "rand" and samples == 0:
        raise ValueError(
            f"{part.name} has num_samples 0 and calls logits_fn(images); version rand needs num_samples of 1 or more, "
            f"such as Apgd(epsilon, norm, num_samples={NUM_SAMPLES})."
        )
    if version != "rand" and samples:
        raise ValueError(
            f"{part.name} has num_samples {samples} and calls logits_fn(images, key); version {version} needs "
            f'num_samples of 0. A randomised network is for version="rand".'
        )


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
