"""Agreement of attacks that draw their own random numbers, example by example; flags are bool [N]."""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import stats


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """The share of examples of which both say the same."""
    return float((first == second).mean())


def least_agreement(first: Sequence[np.ndarray], second: Sequence[np.ndarray] | None = None) -> float:
    """The lowest over all pairs: within `first`, or between the two groups. A single attack agrees with itself."""
    pairs = itertools.combinations(first, 2) if second is None else itertools.product(first, second)
    return min((agreement(*pair) for pair in pairs), default=1.0)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """The exact p-value of McNemar's test: how likely so lopsided a disagreement is by chance."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)
