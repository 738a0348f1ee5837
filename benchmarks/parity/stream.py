"""The random numbers of a Square attack, drawn beforehand, so that two implementations can be given the same."""

from typing import NamedTuple

import numpy as np

from rap_jax.attacks.square_candidates import CANDIDATES


class Stream(NamedTuple):
    """Random numbers of one attack on N examples. All examples share those of a candidate, as in the official code.

    Attributes:
      first_signs: 1 or -1 of the first image, float32 [N, rows, columns, C] on the grid of `CANDIDATES`.
      first_transposed: bool [rows, columns]; read under L2 only, as are the two further down.
      corners: of the window of each candidate, uniform in [0, 1), float32 [T, 2].
      other_corners: of the window that gives up its perturbation, the same.
      transposed: whether the pattern is, bool [T].
      signs: 1 or -1, float32 [T, C].
    """

    first_signs: np.ndarray
    first_transposed: np.ndarray
    corners: np.ndarray
    other_corners: np.ndarray
    transposed: np.ndarray
    signs: np.ndarray


def draw_stream(seed: int, norm: str, shape: tuple[int, ...], num_steps: int) -> Stream:
    """A stream for images of `shape` [N, H, W, C] and so many candidates."""
    rng = np.random.default_rng(seed)
    num_images, height, width, channels = shape
    grid = CANDIDATES[norm].grid(height, width)
    draw_signs = lambda *shape: rng.choice(np.array([-1, 1], np.float32), shape)
    return Stream(
        first_signs=draw_signs(num_images, *grid, channels),
        first_transposed=rng.random(grid) > 0.5,
        corners=rng.random((num_steps, 2), np.float32),
        other_corners=rng.random((num_steps, 2), np.float32),
        transposed=rng.random(num_steps) > 0.5,
        signs=draw_signs(num_steps, channels),
    )


def official_places(corners: np.ndarray, sides: np.ndarray, length: int) -> np.ndarray:
    """First row or column of the window where the official code puts it, int [T]: never so far that it ends the image.

    Args:
      corners: uniform, float32 [T].
      sides: of the windows, int [T].
      length: of the image in that direction.
    """
    return ((length - sides).astype(np.float32) * corners).astype(np.int64)


def our_corners(places: np.ndarray, sides: np.ndarray, length: int) -> np.ndarray:
    """The uniform number that puts a window there in `rap_jax`, float32 [T]: the middle of those that do."""
    return ((places + 0.5) / (length - sides + 1)).astype(np.float32)
