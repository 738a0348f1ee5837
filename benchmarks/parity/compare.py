"""Two traces of one attack, ours and the official one, as measured values beside their bars.

The bars are those of a port of AutoAttack: losses 1e-6, projections 1e-5, success of each example the same, APGD's
images 1e-4 on 95% of the examples up to the first that is misclassified (under L2 up to query 20 at most: from there on
rounding grows), FAB's images 1e-5 on 90%.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.parity.traces import LossValues, Nearest, Path, Search
from benchmarks.records import Rows

_LAST_QUERY = {"linf": 10**9, "l2": 20}


class Bar(NamedTuple):
    """A measured value.

    Attributes:
      name: what is measured.
      value: of it.
      limit: None where nothing is asked.
      at_least: whether the value has to reach the limit; otherwise it must not exceed it.
      format: of both.
      attack: which one it is about; bars of one attack share a row of the table.
    """

    name: str
    value: float
    limit: float | None = None
    at_least: bool = False
    format: str = ".1e"
    attack: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the value keeps to the limit; None without one."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def words(self) -> str:
        """What was found."""
        return f"{self.name} {self.value:{self.format}}"

    @property
    def limit_in_words(self) -> str:
        """What is asked; a dash for nothing."""
        return "-" if self.limit is None else f"{'≥' if self.at_least else '≤'} {self.limit:{self.format}}"


def rows_of(bars: Iterable[Bar]) -> Rows:
    """Rows of a table by attack: the bars in words, and all of them by name under `bars`."""
    groups: dict[str, list[Bar]] = {}
    for bar in bars:
        groups.setdefault(bar.attack, []).append(bar)
    return {attack: _row(group) for attack, group in groups.items()}


def _row(bars: Sequence[Bar]) -> dict[str, Any]:
    asked = [bar.passed for bar in bars if bar.passed is not None]
    return {
        "found": "; ".join(bar.words for bar in bars),
        "bar": "; ".join(bar.limit_in_words for bar in bars) if asked else None,
        "passed": all(asked) if asked else None,
        "verdict": ("holds" if all(asked) else "FAILS") if asked else None,
        "bars": {bar.name: {"value": bar.value, "limit": bar.limit} for bar in bars},
    }


def share_bar(name: str, holds: np.ndarray, limit: float | None, attack: str = "") -> Bar:
    """The share of a bool array that is True, to be at least `limit`."""
    return Bar(name, float(holds.mean()), limit, at_least=True, format=".2%", attack=attack)


def loss_bars(ours: Mapping[str, LossValues], theirs: Mapping[str, LossValues]) -> list[Bar]:
    """Values and gradients of all losses, on the same logits."""
    values = max(_largest(ours[name].values, theirs[name].values) for name in theirs)
    gradients = max(_largest(ours[name].gradients, theirs[name].gradients) for name in theirs)
    return [Bar("values", values, 1e-6, attack="losses"), Bar("gradients", gradients, 1e-6, attack="losses")]


def _largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference; of numbers above 1 relative to them, since float32 has 7 digits of those."""
    return float((np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1)).max())


class PathErrors(NamedTuple):
    """Of APGD's paths, by example [N].

    Attributes:
      images: largest difference of a pixel up to the first query that is misclassified.
      losses: largest difference of a loss up to there, of losses above 1 relative to them.
      best_loss: difference of the highest losses.
      flag: whether both say the same of success.
    """

    images: np.ndarray
    losses: np.ndarray
    best_loss: np.ndarray
    flag: np.ndarray


def path_errors(ours: Path, theirs: Path, norm: str) -> PathErrors:
    """Compares one start; `theirs` may hold the images of some queries only."""
    queries = np.arange(len(theirs.losses))
    first_wrong = np.where(theirs.wrong.any(0), theirs.wrong.argmax(0), queries[-1])
    counted = queries[:, None] <= np.minimum(first_wrong, _LAST_QUERY[norm])
    kept = np.searchsorted(ours.steps, theirs.steps)
    images = np.abs(ours.images[kept] - theirs.images).reshape(*theirs.images.shape[:2], -1).max(-1)
    losses = np.abs(ours.losses - theirs.losses) / np.maximum(np.abs(theirs.losses), 1)
    return PathErrors(
        images=np.where(counted[theirs.steps], images, 0).max(0),
        losses=np.where(counted, losses, 0).max(0),
        best_loss=np.abs(ours.best_loss - theirs.best_loss),
        flag=ours.broken == theirs.broken,
    )


def path_bars(name: str, starts: Sequence[PathErrors]) -> list[Bar]:
    """Of one APGD attack, over all its starts."""
    errors = PathErrors(*(np.concatenate(leaves) for leaves in zip(*starts, strict=True)))
    return [
        share_bar("same path", errors.images <= 1e-4, 0.95, name),
        Bar("best loss", float(np.median(errors.best_loss)), 1e-5, attack=name),
        share_bar("same success", errors.flag, 1.0, name),
    ]


def nearest_bars(name: str, ours: Nearest, theirs: Nearest) -> list[Bar]:
    """Of FAB, over all examples and starts."""
    differences = np.abs(ours.images - theirs.images).reshape(*theirs.broken.shape, -1).max(-1)
    return [
        share_bar("same image", differences <= 1e-5, 0.9, name),
        share_bar("same success", ours.broken == theirs.broken, 1.0, name),
    ]


def search_bars(name: str, ours: Search, theirs: Search) -> list[Bar]:
    """Of Square, over all examples."""
    differences = np.abs(ours.images - theirs.images).reshape(len(theirs.broken), -1).max(-1)
    return [
        share_bar("same number of queries", ours.num_queries == theirs.num_queries, 0.95, name),
        # A candidate that changes nothing has the loss of the best one but for rounding, and may or may not replace it.
        share_bar("same image", differences <= 1e-5, None, name),
        share_bar("same success", ours.broken == theirs.broken, 1.0, name),
    ]


def projection_bar(ours: np.ndarray, theirs: np.ndarray) -> Bar:
    """Of perturbations onto hyperplanes, [N, D]."""
    return Bar("difference", float(np.abs(ours - theirs).max()), 1e-5, attack="projection")
