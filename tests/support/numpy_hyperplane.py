"""The least perturbation onto a hyperplane within [0, 1], by bisection in float64, one point at a time."""

import numpy as np


def perturbation_onto(point: np.ndarray, weights: np.ndarray, height: float, norm: str) -> np.ndarray:
    """For a point [D] with w.x - b = `height`; as near as possible where the box does not reach the hyperplane."""
    point, weights = point.astype(np.float64), weights.astype(np.float64)
    smallest = 0.0 if norm == "linf" else 1e-8
    downhill = np.where(np.abs(weights) > smallest, -np.copysign(1.0, height + 0.0) * weights, 0.0)

    def at(length: float) -> np.ndarray:
        """Where a longer and longer step ends: of L-infinity norm `length`, or along the weights."""
        way = length * (np.sign(downhill) if norm == "linf" else downhill)
        return np.minimum(np.maximum(point + way, 0.0), 1.0) - point

    nearer = lambda length: abs(weights @ at(length)) < abs(height)
    low, high = 0.0, 1.0
    while nearer(high) and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if nearer(middle) else (low, middle)
    return at(high)
