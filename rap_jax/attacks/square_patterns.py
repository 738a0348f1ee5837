"""Sides of Square's windows, and the patterns that fill them under L2: plain NumPy, made while an attack is traced.

Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", 2020,
https://arxiv.org/abs/1912.00049, section 3.3; halved as in AutoAttack.
"""

import functools
from typing import NamedTuple

import numpy as np

# After this many candidates the share of an image that a window covers is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_TILES = 5


def window_sides(norm: str, height: int, width: int, initial_share: float) -> np.ndarray:
    """Sides of the window in pixels after 0, 1, ... halvings, int32 [10].

    A window covers its share of the image up to rounding, and fits in. Under L2 it is 3 pixels or more, and odd so far
    as the image allows.
    """
    shares = initial_share / 2.0 ** np.arange(len(HALVINGS) + 1)
    sides = np.array([round(side) for side in np.sqrt(shares * height * width)], np.int32)
    if norm == "l2":
        sides = np.maximum(sides, 3) // 2 * 2 + 1
    return np.clip(sides, 1, min(height, width))


class Tiling(NamedTuple):
    """The grid of patterns that an L2 attack begins with.

    Attributes:
      side, margin: of a tile, and in front of the first one, in pixels.
      rows, columns: of tiles.
    """

    side: int
    margin: int
    rows: int
    columns: int


def tiling(height: int, width: int) -> Tiling:
    """Five tiles along the shorter edge, as many as fit along the other (for edges below 25 pixels, a few more)."""
    shorter = min(height, width)
    side = max(shorter // _TILES, 1)
    margin = max(shorter - _TILES * side, 0) // 2
    return Tiling(side, margin, (height - margin) // side, (width - margin) // side)


def pattern(side: int) -> np.ndarray:
    """Two bumps of opposite sign, one above the other, of L2 length 1 together: float32 [side, side].

    The value of a bump at distance d from its centre, in the maximum norm, goes with 1/(d+1)^2 + 1/(d+2)^2 + ...
    """
    scale, across, along = pattern_factors(side).T
    return scale[:, None] * np.minimum(across[:, None], along[None])


@functools.cache
def pattern_factors(side: int) -> np.ndarray:
    """`pattern` taken apart: its value at (i, j) is scale[i] * min(across[i], along[j]). Float32 [side, 3].

    A bump falls with the larger of two distances, so it is the smaller of its values at either.
    """
    half, rows = side // 2, np.arange(side)
    bump = np.cumsum(1.0 / np.arange(half + 1, 0, -1) ** 2)[::-1]  # by distance
    lower = rows >= half
    centres = np.where(lower, half + (side - half) // 2, half // 2)
    across, along = bump[np.abs(rows - centres)], bump[np.abs(rows - half)]
    squares = (np.minimum(across[:, None], along[None]) ** 2).sum(1)
    # Both bumps have the same length. A side of 1 has the lower one only.
    lengths = np.sqrt(np.where(lower, squares[lower].sum(), squares[~lower].sum()))
    scale = np.where(lower, -1.0, 1.0) / lengths / np.sqrt(2 if half else 1)
    return np.stack([scale, across, along], axis=1).astype(np.float32)


@functools.cache
def factor_table(largest: int) -> np.ndarray:
    """`pattern_factors` of sides 0 to `largest`, filled up with zeros: float32 [largest + 1, largest, 3]."""
    table = np.zeros((largest + 1, largest, 3), np.float32)
    for side in range(1, largest + 1):
        table[side, :side] = pattern_factors(side)
    return table
