"""The images that Square asks a network about, for each norm: pure functions of images and random numbers.

    first = CANDIDATES[norm].first(images, draw_first(keys, grid, num_channels), epsilon)
    other = CANDIDATES[norm].next(images, best, draw(keys, queries, num_channels), sides, epsilon)

Random numbers are drawn apart from their use, so that a check can hand over a recorded stream. Windows are masks, from
comparing rows and columns with a corner, because each example has a corner and a side of its own. Their sides, and the
patterns that fill them under L2, are NumPy arrays made while an attack is traced.

Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", 2020,
https://arxiv.org/abs/1912.00049, section 3.3; halved as in AutoAttack.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
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
    """The grid of patterns that an L2 attack begins with."""

    side: int  # of a tile, in pixels
    margin: int  # in front of the first tile, in pixels
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


# As in the official implementation: the divisor where there is no perturbation.
_TINY = 1e-12


class FirstDraws(NamedTuple):
    """Random numbers of the first image of each example, on a grid of stripes (Linf) or of tiles (L2)."""

    signs: jax.Array  # 1 or -1, float [N, rows of the grid, columns, C]
    transposed: jax.Array  # whether the pattern of a tile is, bool [N, rows, columns]; read under L2 only


class Draws(NamedTuple):
    """Random numbers of one candidate of each example."""

    corner: jax.Array  # where the window lies between first and last row and column, uniform in [0, 1), [N, 2]
    other_corner: jax.Array  # the same of the window that gives up its perturbation; read under L2 only
    transposed: jax.Array  # whether the pattern is, bool [N]; read under L2 only
    signs: jax.Array  # 1 or -1, float [N, C]


class Candidates(NamedTuple):
    """How the images of a norm are made."""

    grid: Callable[[int, int], tuple[int, int]]  # (height, width) -> rows and columns of the grid of `FirstDraws`
    # (images, first draws, epsilon) -> images inside ball and box, [N, H, W, C].
    first: Callable[[jax.Array, FirstDraws, jax.Array | float], jax.Array]
    # (images, best so far, draws, sides of the windows int32 [N], epsilon) -> images inside ball and box.
    next: Callable[[jax.Array, jax.Array, Draws, jax.Array, jax.Array | float], jax.Array]


def draw_first(keys: jax.Array, grid: tuple[int, int], num_channels: int) -> FirstDraws:
    """Draws of query 0, for each example from its own key: keys [N]."""
    uniforms = _uniforms(keys, jnp.zeros(len(keys), jnp.int32), (*grid, 1 + num_channels))
    return FirstDraws(_signs(uniforms[..., 1:]), uniforms[..., 0] > 0.5)


def draw(keys: jax.Array, queries: jax.Array, num_channels: int) -> Draws:
    """Draws of the candidates with these numbers, from 1 on, int32 [N]; for each example from its own key: keys [N]."""
    uniforms = _uniforms(keys, queries, (5 + num_channels,))
    return Draws(uniforms[:, :2], uniforms[:, 2:4], uniforms[:, 4] > 0.5, _signs(uniforms[:, 5:]))


def _uniforms(keys: jax.Array, queries: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda key, query: jax.random.uniform(jax.random.fold_in(key, query), shape))(keys, queries)


def _signs(uniforms: jax.Array) -> jax.Array:
    return jnp.where(uniforms < 0.5, -1.0, 1.0)


def _offsets(corner: jax.Array, sides: jax.Array, length: int) -> jax.Array:
    """Of each of `length` rows or columns from the window's first, int32 [N, length]; negative before it."""
    first = jnp.floor(corner * (length - sides + 1).astype(corner.dtype)).astype(jnp.int32)
    return jnp.arange(length, dtype=jnp.int32)[None] - first[:, None]


def _within(offsets: jax.Array, sides: jax.Array) -> jax.Array:
    return (offsets >= 0) & (offsets < sides[:, None])


def _window(corner: jax.Array, sides: jax.Array, height: int, width: int) -> jax.Array:
    """Which pixels are in it, bool [N, H, W]."""
    rows = _within(_offsets(corner[:, 0], sides, height), sides)
    columns = _within(_offsets(corner[:, 1], sides, width), sides)
    return rows[:, :, None] & columns[:, None]


def _linf_first(images: jax.Array, draws: FirstDraws, epsilon: jax.Array | float) -> jax.Array:
    return jnp.clip(images + epsilon * draws.signs.astype(images.dtype), 0, 1)


def _linf_next(
    images: jax.Array, best: jax.Array, draws: Draws, sides: jax.Array, epsilon: jax.Array | float
) -> jax.Array:
    """The window goes to one end of the ball: what adding 2 epsilon to `best` and clipping to the ball comes to."""
    end = jnp.clip(images + epsilon * draws.signs[:, None, None].astype(images.dtype), 0, 1)
    return jnp.where(_window(draws.corner, sides, *images.shape[1:3])[..., None], end, best)


def _l2_first(images: jax.Array, draws: FirstDraws, epsilon: jax.Array | float) -> jax.Array:
    _, height, width, _ = images.shape
    side, margin, *grid = tiling(height, width)
    upright, transposed = (jnp.asarray(np.tile(one, grid), images.dtype) for one in (pattern(side), pattern(side).T))
    over_pixels = lambda tiles: jnp.repeat(jnp.repeat(tiles, side, axis=1), side, axis=2)
    patterns = jnp.where(over_pixels(draws.transposed), transposed[None], upright[None])
    delta = patterns[..., None] * over_pixels(draws.signs.astype(images.dtype))
    after = (height - margin - delta.shape[1], width - margin - delta.shape[2])
    delta = jnp.pad(delta, ((0, 0), (margin, after[0]), (margin, after[1]), (0, 0)))
    return _at_distance(images, delta, epsilon)


def _l2_next(
    images: jax.Array, best: jax.Array, draws: Draws, sides: jax.Array, epsilon: jax.Array | float
) -> jax.Array:
    """The window gets a pattern on top of its own, and the length that the ball and another window have to give."""
    _, height, width, num_channels = images.shape
    # With the channels in front, [N, C, H, W]: sums over a plane of a colour image are then twice as fast on a CPU.
    delta = jnp.moveaxis(best - images, -1, 1)
    window = _window(draws.corner, sides, height, width)[:, None]
    other = _window(draws.other_corner, sides, height, width)[:, None]
    unused = jnp.maximum(epsilon**2 - _sum_of_squares(delta, (1, 2, 3)), 0) / num_channels
    gathered = _sum_of_squares(jnp.where(window | other, delta, 0), (2, 3))
    placed = _placed_pattern(draws, sides, height, width).astype(images.dtype)
    new = _unit(jnp.where(window, delta, 0), (2, 3)) + placed
    new = _unit(new, (2, 3)) * jnp.sqrt(unused + gathered)
    delta = jnp.where(window, new, jnp.where(other, 0, delta))
    return _at_distance(images, jnp.moveaxis(delta, 1, -1), epsilon)


def _placed_pattern(draws: Draws, sides: jax.Array, height: int, width: int) -> jax.Array:
    """The pattern of each example's side in its window, with the sign of each channel, [N, C, H, W]."""
    table = jnp.asarray(factor_table(min(height, width)))
    row_scale, rows_across, rows_along = _factors(table, draws.corner[:, 0], sides, height)
    column_scale, columns_across, columns_along = _factors(table, draws.corner[:, 1], sides, width)
    transposed = draws.transposed[:, None]
    rows = jnp.where(transposed, rows_along, rows_across)[:, :, None]
    columns = jnp.where(transposed, columns_across, columns_along)[:, None]
    scale = jnp.where(transposed[..., None], column_scale[:, None], row_scale[:, :, None])
    placed = scale * jnp.minimum(rows, columns)
    return placed[:, None] * draws.signs[..., None, None]


def _factors(table: jax.Array, corner: jax.Array, sides: jax.Array, length: int) -> tuple[jax.Array, ...]:
    """The three `pattern_factors` of each of `length` rows or columns, 0 outside the window: [N, length] each."""
    offsets = _offsets(corner, sides, length)
    found = table[sides[:, None], jnp.clip(offsets, 0, table.shape[1] - 1)]
    found = jnp.where(_within(offsets, sides)[..., None], found, 0)
    return found[..., 0], found[..., 1], found[..., 2]


def _sum_of_squares(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x * x, axes, keepdims=True)


def _unit(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return x / (jnp.sqrt(_sum_of_squares(x, axes)) + _TINY)


def _at_distance(images: jax.Array, delta: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    return jnp.clip(images + epsilon * _unit(delta, (1, 2, 3)), 0, 1)


CANDIDATES: dict[str, Candidates] = {
    # A stripe goes from top to bottom.
    "linf": Candidates(lambda height, width: (1, width), _linf_first, _linf_next),
    "l2": Candidates(lambda height, width: tiling(height, width)[2:], _l2_first, _l2_next),
}
