"""Projections against brute force over every choice of structures, with ties and exact counts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rap_jax.pruning.projections import (
    BatchNormFilter,
    Column,
    Filter,
    Irregular,
    Spec,
    keep_largest,
    mask,
    masks_together,
    num_kept,
    project,
)

pytestmark = pytest.mark.usefixtures("optimised")

KINDS = [Irregular, Filter, Column]
CASES = [(kind, shape) for kind in KINDS for shape in [(2, 3), (2, 1, 2, 2), (3, 2)]] + [(BatchNormFilter, (5,))]


def structures(spec: Spec, shape: tuple[int, ...]) -> np.ndarray:
    """Which structure each weight belongs to, written out by index."""
    owner = np.zeros(shape, int)
    for flat, index in enumerate(np.ndindex(*shape)):
        if isinstance(spec, Irregular):
            owner[index] = flat
        elif isinstance(spec, Filter | BatchNormFilter):
            owner[index] = index[-1]
        else:
            owner[index] = np.ravel_multi_index(index[:-1], shape[:-1])
    return owner


def brute_force_distance(spec: Spec, weights: np.ndarray, kept: int) -> float:
    """Smallest squared distance to any weights with `kept` structures, by trying all of them."""
    owner = structures(spec, weights.shape)
    choices = itertools.combinations(range(owner.max() + 1), kept)
    return min(float(np.sum(np.where(np.isin(owner, choice), 0, weights) ** 2)) for choice in choices)


@pytest.mark.parametrize("kind,shape", CASES)
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


together = jax.jit(masks_together, static_argnums=0)
SHAPES = {kind: [(2, 2), (1, 3), (3, 1)] for kind in KINDS} | {BatchNormFilter: [(3,), (2,), (4,)]}


def listed(spec: Spec, weights: list[np.ndarray]) -> list[tuple[int, int, int, float]]:
    """All structures of all arrays: array, index, size, sum of squares; in the order of the arrays."""
    rows = []
    for array, values in enumerate(weights):
        owner = structures(spec, values.shape)
        for index in range(owner.max() + 1):
            own = values[owner == index].astype(np.float64)
            rows.append((array, index, own.size, float(np.sum(own**2))))
    return rows


def kept_structures(spec: Spec, weights: list[np.ndarray], masks: list[jax.Array]) -> set[tuple[int, int]]:
    """Array and index of the structures under the masks; a structure goes or stays as a whole."""
    kept = set()
    for array, (values, found) in enumerate(zip(weights, map(np.asarray, masks), strict=True)):
        owner = structures(spec, values.shape)
        assert found.shape == values.shape and not set(owner[found]) & set(owner[~found])
        kept |= {(array, int(index)) for index in owner[found]}
    return kept


@pytest.mark.parametrize("kind", [Irregular, BatchNormFilter])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("seed", range(2))
def test_one_budget_is_the_nearest_by_brute_force(kind: type, sparsity: float, seed: int) -> None:
    """Of all choices that keep the exact count, and one of each array, none is nearer."""
    generator = np.random.default_rng(seed)
    weights = [(3.0**n * generator.normal(size=shape)).astype(np.float32) for n, shape in enumerate(SHAPES[kind])]
    rows = listed(kind(sparsity), weights)
    count = max(num_kept(kind(sparsity), len(rows)), len(weights))
    choices = [c for c in itertools.combinations(rows, count) if {row[0] for row in c} == {0, 1, 2}]
    best = max(choices, key=lambda choice: sum(row[3] for row in choice))
    kept = kept_structures(kind(sparsity), weights, together(kind(sparsity), weights))
    assert kept == {row[:2] for row in best}


def greedy(spec: Spec, rows: list[tuple[int, int, int, float]]) -> set[tuple[int, int]]:
    """The rule written out: the best of each array, then the best of all while the next one fits."""
    by_value = sorted(rows, key=lambda row: -row[3] / row[2])  # stable: ties stay in order
    first = [next(row for row in by_value if row[0] == array) for array in range(3)]
    queue = [row for row in by_value if row in first] + [row for row in by_value if row not in first]
    room = num_kept(spec, sum(row[2] for row in rows))
    kept: list[tuple[int, int, int, float]] = []
    for row in queue:
        if sum(other[2] for other in kept) + row[2] > room:
            break
        kept.append(row)
    return {row[:2] for row in [*first, *kept]}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0]), min_size=60, max_size=60),
    st.sampled_from([*KINDS, BatchNormFilter]),
    st.sampled_from([0.1, 0.4, 0.5, 0.7, 0.97]),
)
def test_one_budget_is_the_greedy_choice_also_under_ties(numbers: list[float], kind: type, sparsity: float) -> None:
    shapes = [(30,), (10,), (20,)] if kind is BatchNormFilter else [(5, 6), (2, 5), (2, 1, 2, 5)]
    split = np.split(np.asarray(numbers, np.float32), [30, 40])
    weights = [part.reshape(shape) for part, shape in zip(split, shapes, strict=True)]
    spec = kind(sparsity)
    assert kept_structures(spec, weights, together(spec, weights)) == greedy(spec, listed(spec, weights))


@pytest.mark.parametrize("kind", [Filter, Column])
@pytest.mark.parametrize("sparsity", [0.2, 0.35, 0.5])
@pytest.mark.parametrize("seed", range(2))
def test_one_budget_against_the_best_knapsack(kind: type, sparsity: float, seed: int) -> None:
    """Never over the budget, short of it by less than one structure, below the best by less than one's squares."""
    generator = np.random.default_rng(seed)
    shapes = [(3, 4), (2, 2), (2, 3)]
    weights = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    spec = kind(sparsity)
    rows = listed(spec, weights)
    kept = kept_structures(spec, weights, together(spec, weights))
    inside, outside = ([row for row in rows if (row[:2] in kept) == side] for side in (True, False))
    room = (1 - sparsity) * sum(row[2] for row in rows)
    used = sum(row[2] for row in inside)
    assert used <= room + 0.5 and room - used < max(row[2] for row in rows)
    found = sum(row[3] for row in inside)
    choices = itertools.chain.from_iterable(itertools.combinations(rows, n) for n in range(3, len(rows) + 1))
    fits = lambda c: sum(row[2] for row in c) <= room + 0.5 and {row[0] for row in c} == {0, 1, 2}
    best = max(sum(row[3] for row in choice) for choice in choices if fits(choice))
    assert best - max(row[3] for row in outside) < found <= best + 1e-5


def test_one_budget_measures_filters_per_weight() -> None:
    """A filter of 9 weights of 1 has more squares than one of 2 weights of 2, but the small one is worth more."""
    large, small = jnp.ones((9, 2)).at[:, 0].set(1.1), jnp.full((2, 3), 2.0).at[:, 2].set(0.1)
    found = together(Filter(0.4), [large, small])  # 24 weights, 14 of them may stay
    np.testing.assert_array_equal(found[0].any(0), [True, False])
    np.testing.assert_array_equal(found[1].any(0), [True, True, False])


def test_one_structure_of_each_array_stays_whatever_the_budget() -> None:
    tiny, zero, large = 1e-6 * jnp.array([[1.0, 2.0]]), jnp.zeros((2, 2)), jnp.ones((2, 2))
    for kind in KINDS:
        found = together(kind(0.99), [tiny, zero, large])
        expected = {Irregular: (1, 1, 1), Filter: (1, 2, 2), Column: (2, 2, 2)}[kind]
        assert tuple(int(m.sum()) for m in found) == expected
    np.testing.assert_array_equal(together(Filter(0.99), [tiny, large])[0], [[False, True]])


def test_a_global_budget_of_one_array_is_its_own() -> None:
    """8 columns of 2 weights: 11 weights may stay, so 5 columns, where the budget of a layer is rounded to 6."""
    weights = jnp.arange(16.0).reshape(8, 2)
    alone, shared = (np.asarray(mask(Column(0.3, budget), weights)).all(1) for budget in ("layer", "global"))
    np.testing.assert_array_equal(alone, np.arange(8) >= 2)
    np.testing.assert_array_equal(shared, np.arange(8) >= 3)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("kind", [*KINDS, BatchNormFilter])
def test_refuses_a_sparsity_outside(kind: type, sparsity: float) -> None:
    with pytest.raises(ValueError, match=f"{sparsity}.*\\[0, 1\\)"):
        kind(sparsity)


def test_refuses_a_budget_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="'all'; expected layer or global"):
        Filter(0.5, "all")


@pytest.mark.parametrize("budget", ["layer", "global"])
def test_refuses_the_wrong_axes(budget: str) -> None:
    with pytest.raises(ValueError, match="\\(4,\\)"):
        mask(Irregular(0.5, budget), jnp.ones(4))
    with pytest.raises(ValueError, match="\\(4, 2\\).*BatchNorm"):
        mask(BatchNormFilter(0.5, budget), jnp.ones((4, 2)))
