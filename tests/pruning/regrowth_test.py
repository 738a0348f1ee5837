"""Flying Bird: what is dropped and what may grow, against its rule in NumPy."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rap_jax.pruning.masks import apply_state_masks
from rap_jax.pruning.projections import Column, Filter, Irregular
from rap_jax.pruning.regrowth import drop_and_regrow, exchange

PARAMS = {
    "fc1": {"kernel": jax.random.normal(jax.random.key(0), (10, 8)), "bias": jnp.ones(8)},
    "fc2": {"kernel": jax.random.normal(jax.random.key(1), (8, 5)), "bias": jnp.ones(5)},
}
SPECS = {"fc1/kernel": Irregular(0.75), "fc2/kernel": Irregular(0.5)}
NUM_STEPS, INTERVAL = 13, 3


def test_an_exchange_drops_the_smallest_and_draws_among_the_free_places() -> None:
    norms = jnp.array([5.0, 1.0, 4.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    there, free = norms > 0, jnp.array([1, 1, 1, 1, 1, 1, 0, 1], bool)
    one = jax.jit(lambda key: exchange(norms, there, free, jnp.float32(0.3), key))
    found = np.stack([one(jax.random.key(seed)) for seed in range(100)])
    assert (found.sum(1) == 4).all()
    assert found[:, [0, 2]].all() and not found[:, 6].any()  # 0.3 of 4, rounded up, go: 1.0 and 2.0
    drawn = found[:, [1, 3, 4, 5, 7]].mean(0)
    np.testing.assert_allclose(drawn, 2 / 5, atol=4 * math.sqrt(0.24 / 100))


def test_where_too_few_places_are_free_dropped_ones_stay() -> None:
    norms = jnp.array([5.0, 1.0, 4.0, 2.0, 0.0, 0.0])
    free = jnp.array([0, 0, 0, 0, 1, 0], bool)
    found = exchange(norms, norms > 0, free, jnp.float32(0.5), jax.random.key(0))
    assert found.sum() == 4 and found[0] and found[2] and found[4] and not found[5]


@pytest.fixture(scope="module")
def training() -> list[tuple[Any, Any, Any]]:
    """(params, state, gradient at them) of each step."""
    tx = drop_and_regrow(optax.sgd(0.1, momentum=0.9), SPECS, interval=INTERVAL, num_steps=NUM_STEPS, share=0.6)
    state = tx.init(PARAMS)
    params, found, update = apply_state_masks(state, PARAMS), [], jax.jit(tx.update)
    for number in range(NUM_STEPS):
        gradient = optax.tree.random_like(jax.random.key(number), params)
        found.append((params, state, gradient))
        updates, state = update(gradient, state, params, key=jax.random.key(100 + number))
        params = optax.apply_updates(params, updates)
    return [*found, (params, state, gradient)]


def test_the_share_falls_by_half_a_cosine_and_the_smallest_go(training: list[tuple[Any, Any, Any]]) -> None:
    for number in range(NUM_STEPS):
        (params, before, gradient), (_, after, _) = training[number], training[number + 1]
        step = number + 1
        for name in PARAMS:
            old, new = (np.asarray(state.masks[name]["kernel"]) for state in (before, after))
            assert old.sum() == new.sum() == {"fc1": 20, "fc2": 20}[name]
            if step % INTERVAL or step + INTERVAL > NUM_STEPS:
                np.testing.assert_array_equal(old, new)
                continue
            trace = jax.tree.leaves(before.inner)  # momentum of SGD, in the order of the params
            moved = np.asarray(params[name]["kernel"]) - 0.1 * (
                np.where(old, gradient[name]["kernel"], 0)
                + 0.9 * np.asarray(trace[[leaf.shape for leaf in trace].index(old.shape)])
            )
            dropped = math.ceil(0.3 * (1 + math.cos(math.pi * step / NUM_STEPS)) * 20)
            survive = old & (np.abs(moved) >= np.sort(np.abs(moved[old]))[dropped])
            assert survive.sum() == 20 - dropped and (new & survive).sum() == survive.sum()
            assert (new != old).any()


def test_weights_grow_from_zero_and_masked_ones_are_zero(training: list[tuple[Any, Any, Any]]) -> None:
    for (_, before, _), (params, after, _) in itertools.pairwise(training):
        for name in PARAMS:
            kernel, mask = np.asarray(params[name]["kernel"]), np.asarray(after.masks[name]["kernel"])
            assert (kernel[~mask] == 0).all()
            grown = mask & ~np.asarray(before.masks[name]["kernel"])
            momentum = next(leaf for leaf in jax.tree.leaves(before.inner) if leaf.shape == kernel.shape)
            np.testing.assert_allclose(kernel[grown], -0.1 * 0.9 * np.asarray(momentum)[grown], rtol=1e-5, atol=1e-7)
            alive = mask.any(0)
            assert (np.asarray(params[name]["bias"])[~alive] == 0).all()


def test_what_has_grown_is_there_in_the_end(training: list[tuple[Any, Any, Any]]) -> None:
    params = training[-1][0]
    assert [int((params[name]["kernel"] != 0).sum()) for name in PARAMS] == [20, 20]


def test_no_weight_grows_where_the_gradient_is_zero() -> None:
    tx = drop_and_regrow(optax.sgd(0.1), {"fc1/kernel": Irregular(0.5)}, interval=1, num_steps=4, share=1.0)
    state = tx.init(PARAMS)
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    gradient["fc1"]["kernel"] = gradient["fc1"]["kernel"].at[:, 2:].set(0.0)
    params = apply_state_masks(state, PARAMS)
    _, after = tx.update(gradient, state, params, key=jax.random.key(0))
    grown = np.asarray(after.masks["fc1"]["kernel"] & ~state.masks["fc1"]["kernel"])
    assert grown[:, :2].any() and not grown[:, 2:].any()
    assert int(after.masks["fc1"]["kernel"].sum()) == 40


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({"specs": {"fc1/kernel": Filter(0.5)}}, "fc1/kernel: Filter.*expected Irregular or Column"),
        ({"specs": {"fc1/kernel": Column(0.5, stack_axes=1)}}, "stacks of layers; expected stack_axes=0"),
        ({"interval": 0}, "interval is 0; expected 1 or more"),
        ({"interval": 13}, "interval is 13; expected 1 or more updates, and fewer than all 13"),
        ({"share": 0.0}, "share is 0.0; expected a share in"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        drop_and_regrow(optax.sgd(0.1), **{"specs": SPECS, "interval": INTERVAL, "num_steps": NUM_STEPS} | changes)


def test_a_key_is_asked_for() -> None:
    tx = drop_and_regrow(optax.sgd(0.1), SPECS, interval=INTERVAL, num_steps=NUM_STEPS)
    with pytest.raises(ValueError, match="needs params and a key"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
