"""ADMM's transformation against autodiff of the augmented Lagrangian, and on a problem with a known answer."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rap_jax.pruning.admm import AdmmState, add_admm_penalty, find_admm_state, residuals
from rap_jax.pruning.projections import Filter, Irregular, project
from rap_jax.pruning.specs import project_tree

pytestmark = pytest.mark.usefixtures("optimised")

PARAMS = {
    "conv1": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 4)), "bias": jnp.ones(4)},
    "fc1": {"kernel": jax.random.normal(jax.random.key(1), (6, 4)), "bias": jnp.ones(4)},
}
SPECS = {"conv1/kernel": Filter(0.5), "fc1/kernel": Irregular(0.5)}
project_fn = functools.partial(project_tree, SPECS)


def random_like(tree: chex.ArrayTree, seed: int) -> chex.ArrayTree:
    return optax.tree.random_like(jax.random.key(seed), tree)


@pytest.mark.parametrize("dual_step", [False, True])
def test_update_is_the_gradient_of_the_augmented_lagrangian(dual_step: bool) -> None:
    target = random_like(PARAMS, 2)
    loss = lambda w: optax.tree.norm(optax.tree.sub(w, target), squared=True)
    tx = add_admm_penalty(0.7, project_fn)
    state = tx.init(PARAMS)._replace(u=random_like(PARAMS, 3))
    updates, after = jax.jit(tx.update)(jax.grad(loss)(PARAMS), state, PARAMS, dual_step=dual_step)

    def lagrangian(w: chex.ArrayTree) -> jax.Array:
        gap = jax.tree.map(lambda w, z, u: w - z + u, w, after.z, after.u)
        return loss(w) + 0.7 / 2 * optax.tree.norm(gap, squared=True)

    chex.assert_trees_all_close(updates, jax.grad(lagrangian)(PARAMS), rtol=1e-5, atol=1e-5)


def test_dual_step_equals_numpy() -> None:
    w, u = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    tx = add_admm_penalty(1.0, functools.partial(project, Irregular(0.75)))
    state = tx.init(jnp.asarray(w))._replace(u=jnp.asarray(u), rho=jnp.ones(()))
    _, after = tx.update(jnp.zeros((5, 4)), state, jnp.asarray(w), dual_step=True)
    shifted = w + u
    z = np.where(np.abs(shifted) >= np.sort(np.abs(shifted).ravel())[-5], shifted, 0)
    np.testing.assert_allclose(after.z, z, rtol=1e-6)
    np.testing.assert_allclose(after.u, u + w - z, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(after.dual_residual, np.linalg.norm(z - np.asarray(state.z)), rtol=1e-5)
    assert after.num_dual_steps == 1


def test_starts_at_the_projection_without_a_dual() -> None:
    state = add_admm_penalty(1.0, project_fn).init(PARAMS)
    chex.assert_trees_all_equal(state.z, project_fn(PARAMS))
    chex.assert_trees_all_equal(state.u, jax.tree.map(jnp.zeros_like, PARAMS))


@pytest.mark.parametrize("rule,rho", [("uniform", 4.0), ("gradient", 2.0)])
@pytest.mark.parametrize("rescale_dual", [True, False])
def test_converges_to_the_known_answer_of_a_quadratic(rule: str, rho: float, rescale_dual: bool) -> None:
    """min 1/2 sum h (w - a)^2 with 3 of 8 entries: keep the largest h a^2 (here also the largest |a|), at w = a."""
    a = jnp.array([[0.9, -3.0], [0.1, 2.0], [-0.4, 5.0], [0.6, -0.2]])
    h = jnp.array([[1.0, 0.5], [2.0, 1.5], [1.0, 1.0], [0.5, 1.0]])
    project_small = functools.partial(project, Irregular(5 / 8))
    schedule = lambda count: rho * jnp.minimum(1.02**count, 3.0)
    penalty = add_admm_penalty(schedule, project_small, rho_rule=rule, rescale_dual=rescale_dual)
    tx = optax.chain(penalty, optax.sgd(0.05))
    w = jnp.zeros((4, 2))
    state = tx.init(w)

    @jax.jit
    def step(w: jax.Array, state: optax.OptState, dual_step: jax.Array) -> tuple[jax.Array, optax.OptState]:
        updates, state = tx.update(h * (w - a), state, w, dual_step=dual_step)
        return optax.apply_updates(w, updates), state

    for number in range(3000):
        w, state = step(w, state, number % 20 == 19)
    expected = jnp.where(jnp.abs(a) >= 2.0, a, 0.0)
    np.testing.assert_allclose(w, expected, atol=2e-2)
    assert float(residuals(find_admm_state(state), w, project_small).distance) < 1e-2


def test_compiles_once_for_both_kinds_of_step_and_keeps_types() -> None:
    tx = add_admm_penalty(1.0, project_fn, rho_rule="gradient")
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(PARAMS)
    for dual_step in (False, True, False):
        _, after = update(PARAMS, state, PARAMS, dual_step=dual_step)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        state = after


def test_takes_extra_arguments_it_does_not_know() -> None:
    tx = add_admm_penalty(1.0, project_fn)
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, dual_step=False, something_else=3)
    with pytest.raises(ValueError, match="dual_step is None and dual_interval is None.*flag.*dual_interval=200"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="params"):
        tx.update(PARAMS, tx.init(PARAMS), dual_step=False)


def test_growing_rho_keeps_the_multiplier() -> None:
    grow = lambda count: 0.5 * 2.0**count
    for rescale_dual, factor in ((True, 0.5), (False, 1.0)):
        tx = add_admm_penalty(grow, project_fn, rescale_dual=rescale_dual)
        update = functools.partial(tx.update, PARAMS, params=PARAMS)
        _, first = update(state=tx.init(PARAMS), dual_step=False)
        _, second = update(state=first, dual_step=True)
        assert float(first.rho["fc1"]["kernel"]) == 0.5 and float(second.rho["fc1"]["kernel"]) == 1.0
        residual = jax.tree.map(jnp.subtract, PARAMS, project_fn(PARAMS))
        chex.assert_trees_all_close(second.u, optax.tree.scale(factor, residual), rtol=1e-6)


def test_gradient_rule_measures_each_layer() -> None:
    """rho_l = rho RMS ||g_l|| / ||w_l||, whatever the scale of a layer's gradients and weights."""
    tx = add_admm_penalty(0.1, project_fn, rho_rule="gradient")
    state = tx.init(PARAMS)
    gradients = jax.tree.map(lambda w: 10 * w, PARAMS)
    gradients["fc1"]["kernel"] = 1000 * PARAMS["fc1"]["kernel"]
    for number in range(4):
        sign = 1.0 if number % 2 else -1.0
        _, state = tx.update(
            jax.tree.map(lambda g, sign=sign: sign * g, gradients), state, PARAMS, dual_step=number == 3
        )
        np.testing.assert_allclose(state.rho["conv1"]["kernel"], 1.0, rtol=1e-5)
        np.testing.assert_allclose(state.rho["fc1"]["kernel"], 100.0, rtol=1e-5)


def test_dual_that_keeps_its_graph_equals_autodiff_through_it() -> None:
    """u = u + w - z with w never detached, as the authors build it: each dual step adds one more path to w."""
    tx = add_admm_penalty(0.7, project_fn, rescale_dual=False, dual_keeps_graph=True)
    update = jax.jit(tx.update)
    state, seen = tx.init(PARAMS), []
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for number in range(7):
        params = random_like(PARAMS, 10 + number)
        if number % 2:  # dual steps at the 2nd, 4th and 6th update
            seen.append(params)
        updates, state = update(zeros, state, params, dual_step=bool(number % 2))

        def penalty(w: chex.ArrayTree, now: chex.ArrayTree = params) -> jax.Array:
            u, z = zeros, project_fn(PARAMS)
            for before in seen:
                # The same array in the authors' code: the value it had then, the derivative of today.
                w_then = jax.tree.map(lambda old, leaf, new: old + (leaf - new), before, w, now)
                shifted = optax.tree.add(w_then, u)
                z = jax.lax.stop_gradient(project_fn(shifted))
                u = optax.tree.sub(shifted, z)
            gap = optax.tree.add(optax.tree.sub(w, z), u)
            return 0.7 / 2 * optax.tree.norm(gap, squared=True)

        chex.assert_trees_all_close(updates, jax.grad(penalty)(params), rtol=1e-4, atol=1e-4)
    assert int(state.num_dual_steps) == 3 and float(state.rho["fc1"]["kernel"]) == pytest.approx(0.7)


def test_masked_prunes_some_leaves_only() -> None:
    chosen = {"conv1": {"kernel": True, "bias": False}, "fc1": {"kernel": False, "bias": False}}
    project_conv1 = functools.partial(project_tree, {"conv1/kernel": Filter(0.5)})
    tx = optax.masked(add_admm_penalty(3.0, project_conv1), chosen)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, state = tx.update(zeros, tx.init(PARAMS), PARAMS, dual_step=False)
    chex.assert_trees_all_equal(updates["fc1"], zeros["fc1"])
    np.testing.assert_array_equal(updates["conv1"]["bias"], 0)
    kernel = PARAMS["conv1"]["kernel"]
    np.testing.assert_allclose(updates["conv1"]["kernel"], 3 * (kernel - project(Filter(0.5), kernel)), rtol=1e-6)
    assert len(jax.tree.leaves(find_admm_state(state).z)) == 1


def test_residuals_are_relative() -> None:
    w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    project_one = functools.partial(project, Irregular(0.75))
    tx = add_admm_penalty(1.0, project_one)
    found = residuals(tx.init(w)._replace(z=jnp.zeros((2, 2)), dual_residual=jnp.float32(10.0)), w, project_one)
    assert [float(x) for x in found[:3]] == pytest.approx([1.0, 2.0, 3 / 5])


def test_refuses() -> None:
    with pytest.raises(ValueError, match="rho is 0"):
        add_admm_penalty(0, project_fn)
    with pytest.raises(ValueError, match="rho_rule is 'none'"):
        add_admm_penalty(1.0, project_fn, rho_rule="none")
    with pytest.raises(ValueError, match="0 AdmmState"):
        find_admm_state(optax.adam(0.1).init(PARAMS))
    assert isinstance(find_admm_state(add_admm_penalty(1.0, project_fn).init(PARAMS)), AdmmState)


@pytest.mark.parametrize("rho", [None, "0.1", True, 0.1j, [0.1], float("nan"), -1])
def test_a_rho_that_is_no_number_above_zero_is_refused(rho: Any) -> None:
    with pytest.raises(ValueError, match="rho is .*; expected one finite number above 0"):
        add_admm_penalty(rho, project_fn)


@pytest.mark.parametrize("dual_interval", [2.5, 2.0, True, "5", 0, np.array([2])])
def test_an_interval_that_is_no_whole_number_is_refused(dual_interval: Any) -> None:
    with pytest.raises(ValueError, match="dual_interval is .*; expected a whole number"):
        add_admm_penalty(1.0, project_fn, dual_interval=dual_interval)
    assert int(add_admm_penalty(1.0, project_fn, dual_interval=np.int64(2)).init(PARAMS).dual_interval) == 2


@pytest.mark.parametrize("start", [0.0, -1.0, float("nan"), None])
def test_a_schedule_that_starts_at_no_rho_is_refused(start: Any) -> None:
    with pytest.raises(ValueError, match="rho of the schedule at 0 is .*; expected one finite number above 0"):
        add_admm_penalty(lambda count: start, project_fn).init(PARAMS)


def test_a_projection_that_returns_no_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="project_fn is .*; expected a function"):
        add_admm_penalty(1.0, SPECS)
    for bad in (lambda w: jax.tree.map(lambda a: a != 0, w), lambda w: jax.tree.map(lambda a: a[..., :1], w)):
        with pytest.raises(ValueError, match=r"project_fn returns (bool|float32)\[.*\] for conv1/bias; .*float32\[4\]"):
            add_admm_penalty(1.0, bad).init(PARAMS)
    for bad in (lambda w: None, lambda w: w["conv1"]):
        with pytest.raises(ValueError, match="project_fn returns a tree .*; expected the one of the weights"):
            add_admm_penalty(1.0, bad).init(PARAMS)
