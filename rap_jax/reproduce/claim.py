"""A claim of the paper's text as a short page, and the words in which our numbers are put beside it.

What is said of our numbers is chosen by the numbers; a cell without one is named as missing.
"""

from typing import NamedTuple

from rap_jax.reproduce import paper
from rap_jax.reproduce.collect import Value
from rap_jax.reproduce.values import as_number, as_spread

# A network that answers the most frequent class for every image has 11.35 on MNIST.
COLLAPSED = 12.0
READ = (
    "Numbers are natural / PGD accuracy in percent, means over seeds; in parentheses the lowest and the highest seed "
    "under PGD."
)
PROCEDURE = (
    "The paper's numbers are single runs, so we cannot say by how much two runs differ by chance.",
    "The paper reports the epoch that was best on the test set, so the images that measure have also chosen.",
)


class Section(NamedTuple):
    """Attributes: heading: above it; paragraphs: plain text; points: plain text, a list below them."""

    heading: str
    paragraphs: tuple[str, ...]
    points: tuple[str, ...] = ()


class Page(NamedTuple):
    """Attributes: title: the question; sections: in reading order."""

    title: str
    sections: tuple[Section, ...]


def compared(ours: Value, other: Value, our_name: str, other_name: str) -> str:
    """Which of two has more under PGD, and whether the seeds allow to say so."""
    assert ours.mean is not None and other.mean is not None
    more = ours.mean - other.mean
    first, second = (our_name, other_name) if more >= 0 else (other_name, our_name)
    text = f"{first} has {abs(more):.2f} points more under PGD than {second}"
    if not can_be_judged(ours, other):
        return f"{text}; with one seed of either that may be chance."
    words = "do not overlap" if is_apart(ours, other) else "overlap, so it may be chance"
    return f"{text}, and the ranges of the seeds {words}."


def can_be_judged(value: Value, other: Value) -> bool:
    """Whether both have several seeds."""
    return min(len(value.by_seed), len(other.by_seed)) > 1


def is_apart(value: Value, other: Value) -> bool:
    """Whether all seeds of one lie above all of the other; `can_be_judged` says whether that means anything."""
    assert value.spread and other.spread
    return value.spread[0] > other.spread[1] or other.spread[0] > value.spread[1]


def as_accuracies(natural: Value, pgd: Value) -> str:
    """Both means, and under PGD the lowest and the highest seed."""
    spread = as_spread(pgd)
    return f"{as_number(natural.mean)} / {as_number(pgd.mean)}" + (f" ({spread})" if spread else "")


def as_collapse(natural: Value) -> list[str]:
    """How many of the seeds have collapsed; nothing if none has."""
    count = sum(percent < COLLAPSED for percent in natural.by_seed.values())
    return [f"{count} of {len(natural.by_seed)} collapsed"] if count else []


def as_pair(accuracies: paper.Accuracies) -> str:
    """Natural and adversarial accuracy of the paper."""
    return f"{accuracies.natural:.2f} / {accuracies.adversarial:.2f}"
