"""Projections against brute force over every choice of structures, with ties and exact counts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rap_jax.projections import Column, Filter, Irregular, Spec, keep_largest, mask, num_kept, project

KINDS = [Irregular, Filter, Column]


def structures(spec: Spec, shape: tuple[int, ...]) -> np.ndarray:
    """Which structure each weight belongs to, written out by index."""
    owner = np.zeros(shape, int)
    for flat, index in enumerate(np.ndindex(*shape)):
        if isinstance(spec, Irregular):
            owner[index] = flat
        elif isinstance(spec, Filter):
            owner[index] = index[-1]
        else:
            owner[index] = np.ravel_multi_index(index[:-1], shape[:-1])
    return owner


def brute_force_distance(spec: Spec, weights: np.ndarray, kept: int) -> float:
    """Smallest squared distance to any weights with `kept` structures, by trying all of them."""
    owner = structures(spec, weights.shape)
    choices = itertools.combinations(range(owner.max() + 1), kept)
    return min(float(np.sum(np.where(np.isin(owner, choice), 0, weights) ** 2)) for choice in choices)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 2, 2), (3, 2)])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_nearest_by_brute_force(kind: type, shape: tuple[int, ...], sparsity: float) -> None:
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    spec = kind(sparsity)
    kept = num_kept(spec, structures(spec, shape).max() + 1)
    found = np.asarray(jax.jit(project, static_argnums=0)(spec, weights))
    np.testing.assert_allclose(np.sum((found - weights) ** 2), brute_force_distance(spec, weights, kept), rtol=1e-5)
    assert len(np.unique(structures(spec, shape)[found != 0])) == kept
    np.testing.assert_array_equal(found[found != 0], weights[found != 0])


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, (2, 2, 3), elements=st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0])),
    st.sampled_from(KINDS),
    st.sampled_from([0.25, 0.5, 0.8]),
)
def test_ties_keep_the_exact_count_and_the_lower_index(weights: np.ndarray, kind: type, sparsity: float) -> None:
    spec = kind(sparsity)
    owner = structures(spec, weights.shape)
    found = np.asarray(mask(spec, jnp.asarray(weights)))
    kept = sorted(set(owner[found]))
    assert not set(kept) & set(owner[~found])  # a structure goes or stays as a whole
    power = [float(np.sum(weights[owner == s] ** 2)) for s in range(owner.max() + 1)]
    expected = sorted(sorted(range(len(power)), key=lambda s: (-power[s], s))[: num_kept(spec, len(power))])
    assert kept == expected


@pytest.mark.parametrize("kind", KINDS)
def test_projecting_twice_changes_nothing(kind: type) -> None:
    weights = jax.random.normal(jax.random.key(0), (3, 3, 4, 6))
    once = project(kind(0.6), weights)
    np.testing.assert_array_equal(project(kind(0.6), once), once)


@pytest.mark.parametrize(
    "sparsity,total,kept",
    [(0.0, 8, 8), (0.5, 8, 4), (0.5, 5, 2), (0.9375, 32, 2), (0.9, 10, 1), (0.99, 4, 1), (0.29, 100, 71)],
)
def test_num_kept(sparsity: float, total: int, kept: int) -> None:
    assert num_kept(Filter(sparsity), total) == kept


def test_all_equal_keeps_the_first() -> None:
    np.testing.assert_array_equal(keep_largest(jnp.ones(5), 2), [True, True, False, False, False])


def test_keeps_all_and_keeps_one() -> None:
    values = jnp.array([3.0, 1.0, 2.0])
    np.testing.assert_array_equal(keep_largest(values, 3), [True, True, True])
    np.testing.assert_array_equal(keep_largest(values, 1), [True, False, False])


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("kind", KINDS)
def test_refuses_a_sparsity_outside(kind: type, sparsity: float) -> None:
    with pytest.raises(ValueError, match=f"{sparsity}.*\\[0, 1\\)"):
        kind(sparsity)


def test_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match="\\(4,\\)"):
        mask(Irregular(0.5), jnp.ones(4))
