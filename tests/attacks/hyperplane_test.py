"""Projections on a hyperplane in the box: against bisection and SciPy, and by their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_hyperplane import perturbation_onto
from scipy import optimize

from rap_jax.attacks.hyperplane import ONTO_HYPERPLANE

COMPILED = {norm: jax.jit(onto) for norm, onto in ONTO_HYPERPLANE.items()}
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def perturb(norm: str, points: np.ndarray, weights: np.ndarray, height: np.ndarray) -> np.ndarray:
    arrays = (jnp.asarray(x, jnp.float32) for x in (points, weights, height))
    return np.asarray(COMPILED[norm](*arrays), np.float64)


def size(perturbation: np.ndarray, norm: str) -> np.ndarray:
    return np.linalg.norm(perturbation, np.inf if norm == "linf" else 2, axis=-1)


def draw(seed: int, num_points: int, num_dimensions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, some on the border; weights, some zero; heights of both signs, some out of reach."""
    rng = np.random.default_rng(seed)
    points = np.clip(1.4 * rng.random((num_points, num_dimensions)) - 0.2, 0, 1).astype(np.float32)
    weights = rng.normal(size=points.shape).astype(np.float32) * (rng.random(points.shape) > 0.2)
    reach = np.abs(weights).sum(1) * rng.uniform(-0.7, 0.7, num_points)
    return points, weights, reach.astype(np.float32)


def rest_of_height(points: np.ndarray, weights: np.ndarray, height: np.ndarray) -> np.ndarray:
    """What of |height| remains if everything moves to the border; negative: it is within reach."""
    room = np.where(weights * np.sign(height)[:, None] > 0, points, 1 - points)
    return np.abs(height) - (np.abs(weights) * room).sum(1)


@both_norms
@pytest.mark.parametrize("num_dimensions", [1, 5, 784])
def test_equals_bisection(norm: str, num_dimensions: int) -> None:
    points, weights, height = draw(0, 64, num_dimensions)
    unreachable = rest_of_height(points, weights, height) > 0
    assert 0 < unreachable.sum() < 64
    expected = [perturbation_onto(p, w, h, norm) for p, w, h in zip(points, weights, height, strict=True)]
    np.testing.assert_allclose(perturb(norm, points, weights, height), expected, atol=1e-5)


@both_norms
def test_no_solver_finds_a_shorter_one(norm: str) -> None:
    points, weights, height = draw(1, 12, 5)
    found = perturb(norm, points, weights, height)
    for p, w, h, d in zip(points, weights, height, found, strict=True):
        if rest_of_height(p[None], w[None], h[None])[0] < 0:
            least = shortest_by_scipy(p.astype(float), w.astype(float), float(h), norm)
            np.testing.assert_allclose(size(d, norm), least, atol=1e-5)


def shortest_by_scipy(point: np.ndarray, weights: np.ndarray, height: float, norm: str) -> float:
    bounds = list(zip(-point, 1 - point, strict=True))
    if norm == "l2":
        square = lambda d: (d @ d, 2 * d)
        on_plane = {"type": "eq", "fun": lambda d: weights @ d + height, "jac": lambda d: weights}
        middle = 0.5 - point
        solved = optimize.minimize(
            square, middle, jac=True, bounds=bounds, constraints=on_plane, method="SLSQP", options={"ftol": 1e-14}
        )
        return float(np.linalg.norm(solved.x))
    # The least s with -s <= d_i <= s: a linear program in (d, s).
    eye, ones = np.eye(len(point)), np.ones((len(point), 1))
    solved = optimize.linprog(
        np.append(np.zeros(len(point)), 1),
        A_ub=np.block([[eye, -ones], [-eye, -ones]]),
        b_ub=np.zeros(2 * len(point)),
        A_eq=np.append(weights, 0)[None],
        b_eq=[-height],
        bounds=[*bounds, (0, None)],
    )
    return float(solved.fun)


@both_norms
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_properties(norm: str, seed: int, scale: float) -> None:
    points, weights, height = draw(seed, 8, 16)
    weights, height = scale * weights, scale * height
    found = perturb(norm, points, weights, height)
    assert (points + found >= -1e-6).all() and (points + found <= 1 + 1e-6).all()
    assert (found[weights == 0] == 0).all()
    left = np.abs(height + (weights * found).sum(1)) / np.abs(weights).sum(1)
    expected = np.maximum(rest_of_height(points, weights, height), 0) / np.abs(weights).sum(1)
    np.testing.assert_allclose(left, expected, atol=2e-6)  # 0 within reach, else as little as possible
    assert_no_way_is_shorter(norm, points, weights, height, found, seed)


def assert_no_way_is_shorter(
    norm: str, points: np.ndarray, weights: np.ndarray, height: np.ndarray, found: np.ndarray, seed: int
) -> None:
    """None of many shorter perturbations in the box, some near the one that was found, gets to the hyperplane."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(300, *points.shape)) * rng.choice([0.01, 0.1, 1], (300, 1, 1)) * np.abs(found).max()
    others = np.clip(points + found + noise, 0, 1) - points  # shrinking it later keeps it in the box
    shortened = others * np.minimum(1, 0.999 * size(found, norm) / size(others, norm))[..., None]
    before, after = height, height + (weights * shortened).sum(-1)
    assert (after * np.sign(before) > 0).all()


@both_norms
def test_weights_and_room_of_all_magnitudes(norm: str) -> None:
    """Coordinates stop one after the other over many orders of magnitude: the hardest case for Newton's method."""
    rng = np.random.default_rng(2)
    points = (10 ** rng.uniform(-7, 0, (256, 300))).astype(np.float32)
    weights = (10 ** rng.uniform(-7, 3, (256, 300))).astype(np.float32)
    height = ((weights * points).sum(1) * (1 - 10 ** rng.uniform(-6, 0, 256))).astype(np.float32)
    found = perturb(norm, points, weights, height)
    left = np.abs(height + (weights * found).sum(1))
    assert (left < 1e-6 * np.abs(weights).sum(1)).all()
    expected = [perturbation_onto(p, w, h, norm) for p, w, h in zip(points, weights, height, strict=True)]
    np.testing.assert_allclose(size(found, norm), size(np.array(expected), norm), rtol=1e-2)


@both_norms
def test_a_point_does_not_see_its_batch(norm: str) -> None:
    points, weights, height = draw(3, 20, 50)
    together = perturb(norm, points, weights, height)
    for i in range(20):
        np.testing.assert_allclose(together[i], perturb(norm, points[[i]], weights[[i]], height[[i]])[0], atol=1e-6)


@both_norms
def test_nothing_to_do(norm: str) -> None:
    points, weights, _ = draw(4, 6, 10)
    np.testing.assert_array_equal(perturb(norm, points, weights, np.zeros(6)), 0)
    np.testing.assert_array_equal(perturb(norm, points, 0 * weights, np.array([-1, 0, 1e-30, 1, 5, 1e30])), 0)


def test_l2_leaves_the_smallest_weights_alone() -> None:
    points, weights = np.full((1, 3), 0.5), np.array([[1.0, -1.01e-8, -0.99e-8]])
    np.testing.assert_allclose(perturb("l2", points, weights, np.ones(1)), [[-0.5, 0.5, 0]])
    np.testing.assert_allclose(perturb("linf", points, weights, np.ones(1)), [[-0.5, 0.5, 0.5]])
