"""The images of a Square attack in NumPy: one example, channel, row and column at a time, with loops and slices."""

import numpy as np

from rap_jax.attacks.square_candidates import Draws


def numpy_pattern(side: int) -> np.ndarray:
    found = np.zeros((side, side))
    for first, last, sign in [(0, side // 2, 1.0), (side // 2, side, -1.0)]:
        bump = np.zeros((last - first, side))
        for i in range(last - first):
            for j in range(side):
                distance = max(abs(i - (last - first) // 2), abs(j - side // 2))
                bump[i, j] = sum(1 / (k + 1) ** 2 for k in range(distance, side // 2 + 1))
        found[first:last] = sign * bump / np.linalg.norm(bump) if last > first else 0
    return found / np.linalg.norm(found)


def numpy_unit(x: np.ndarray) -> np.ndarray:
    return x / (np.linalg.norm(x) + 1e-12)


def numpy_first(norm: str, image: np.ndarray, signs: np.ndarray, transposed: np.ndarray, epsilon: float) -> np.ndarray:
    height, width, num_channels = image.shape
    delta = np.zeros_like(image)
    if norm == "linf":
        for column in range(width):
            delta[:, column] = epsilon * signs[0, column]
        return np.clip(image + delta, 0, 1)
    side = max(min(height, width) // 5, 1)
    margin = max(min(height, width) - 5 * side, 0) // 2
    for i, row in enumerate(range(margin, height - side + 1, side)):
        for j, column in enumerate(range(margin, width - side + 1, side)):
            tile = numpy_pattern(side).T if transposed[i, j] else numpy_pattern(side)
            for channel in range(num_channels):
                delta[row : row + side, column : column + side, channel] = tile * signs[i, j, channel]
    return np.clip(image + epsilon * numpy_unit(delta), 0, 1)


def numpy_next(norm: str, image: np.ndarray, best: np.ndarray, draws: Draws, side: int, epsilon: float) -> np.ndarray:
    height, width, num_channels = image.shape
    places = (height - side + 1, width - side + 1)
    row, column = (int(u * n) for u, n in zip(draws.corner, places, strict=True))
    window = np.s_[row : row + side, column : column + side]
    if norm == "linf":
        delta = best - image
        delta[window] += 2 * epsilon * draws.signs
        return np.clip(image + np.clip(delta, -epsilon, epsilon), 0, 1)
    row, column = (int(u * n) for u, n in zip(draws.other_corner, places, strict=True))
    other = np.s_[row : row + side, column : column + side]
    delta = best - image
    unused = max(epsilon**2 - np.sum(delta**2), 0) / num_channels
    moved = delta.copy()
    tile = numpy_pattern(side).T if draws.transposed else numpy_pattern(side)
    for channel in range(num_channels):
        both = np.zeros((height, width), bool)
        both[window] = both[other] = True
        gathered = np.sum(delta[both, channel] ** 2)
        new = numpy_unit(delta[window][..., channel]) + tile * draws.signs[channel]
        moved[other][..., channel] = 0
        moved[window][..., channel] = numpy_unit(new) * np.sqrt(unused + gathered)
    return np.clip(image + epsilon * numpy_unit(moved), 0, 1)
