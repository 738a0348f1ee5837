"""ADMM and masks inside the wrappers of optax and `nnx.Optimizer`, in every dtype, with states that are donated."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rap_jax.pruning.admm import AdmmState, add_admm_penalty, find_admm_state, residuals
from rap_jax.pruning.masks import apply_masks, count_sparsity, keep_masked
from rap_jax.pruning.projections import Column, Filter, Irregular, keep_largest, mask, masks_together, project
from rap_jax.pruning.specs import masks_of, only_selected, project_tree, selected

pytestmark = pytest.mark.usefixtures("optimised")

SPECS = {"conv/kernel": Filter(0.5)}
project_fn = functools.partial(project_tree, SPECS)
FLOATS = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]


def params_of(kernel: Any = jnp.float32, bias: Any = None) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    layer = {"kernel": generator.normal(size=(1, 1, 2, 4)), "bias": generator.normal(size=4)}
    return {
        "conv": {
            "kernel": jnp.asarray(layer["kernel"], kernel),
            "bias": jnp.asarray(layer["bias"], kernel if bias is None else bias),
        }
    }


def penalty(**settings: Any) -> optax.GradientTransformationExtraArgs:
    return optax.masked(add_admm_penalty(0.1, project_fn, **settings), lambda params: selected(SPECS, params))


def multi_steps(inner: Any) -> Any:
    return optax.MultiSteps(inner, 2).gradient_transformation()


LABELS = {"conv": {"kernel": "pruned", "bias": "pruned"}}
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "chain": lambda inner: optax.chain(inner, optax.sgd(0.1)),
    "named_chain": lambda inner: optax.named_chain(("penalty", inner), ("sgd", optax.sgd(0.1))),
    "masked": lambda inner: optax.masked(inner, {"conv": True}),
    "partition": lambda inner: optax.partition({"pruned": inner, "free": optax.sgd(0.1)}, LABELS),
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
    "MultiSteps": multi_steps,
}


@contextlib.contextmanager
def modes(x64: bool, promotion: str) -> Iterator[None]:
    with jax.enable_x64(x64), jax.numpy_dtype_promotion(promotion):
        yield


@pytest.mark.parametrize("rule", ["uniform", "gradient"])
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("kernel", FLOATS)
def test_every_dtype_stays_what_it_is(rule: str, x64: bool, kernel: Any) -> None:
    """Of mixed params too, under strict promotion, so that the state goes through a scan."""
    if kernel == jnp.float64 and not x64:
        return
    with modes(x64, "strict"):
        params = params_of(kernel, jnp.float32)
        tx = add_admm_penalty(0.1, project_fn, rho_rule=rule, dual_keeps_graph=True, dual_interval=2)
        state = tx.init(params)

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = tx.update(params, state, params)
            chex.assert_trees_all_equal_dtypes(updates, params)
            return (optax.tree.add(params, updates), state), None

        (params, after), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=4))((params, state))
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        assert after.num_dual_steps == 1 and after.u["conv"]["kernel"].dtype == kernel
        assert after.rho["conv"]["kernel"].dtype == (jnp.float64 if kernel == jnp.float64 else jnp.float32)
        found = residuals(after, params, project_fn)
        assert all(bool(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_half_precision_follows_single_precision() -> None:
    kernels = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        params, tx = params_of(dtype), add_admm_penalty(0.5, project_fn, rho_rule="gradient")
        state = tx.init(params)
        for number in range(3):
            updates, state = tx.update(params, state, params, dual_step=number == 1)
        kernels[dtype] = np.asarray(updates["conv"]["kernel"], np.float32)
    np.testing.assert_allclose(kernels[jnp.bfloat16], kernels[jnp.float32], rtol=0.05, atol=0.02)


def test_squares_are_summed_in_single_precision() -> None:
    large = jnp.asarray([[300.0, 400.0], [300.0, 500.0]], jnp.float16)  # their squares overflow in float16
    np.testing.assert_array_equal(mask(Filter(0.5), large), [[False, True], [False, True]])
    close = jnp.asarray(np.repeat([[1.0], [1.0078125]], 256, 1).T, jnp.bfloat16)  # a sum in bfloat16 stops at 256
    np.testing.assert_array_equal(mask(Filter(0.5), close)[0], [False, True])


@pytest.mark.parametrize("promotion", ["standard", "strict"])
def test_one_budget_for_several_dtypes(promotion: str) -> None:
    with modes(True, promotion):
        arrays = [jnp.asarray([[1, 4], [2, 8]], dtype) for dtype in (jnp.float16, jnp.float32, jnp.float64)]
        found = masks_together(Irregular(0.5), arrays)
        assert sum(int(one.sum()) for one in found) == 6 and all(one[1, 1] for one in found)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, bool])
def test_dtypes_without_a_size_are_refused_or_left_alone(dtype: Any) -> None:
    params = {**params_of(), "steps": jnp.ones((2, 2), dtype)}
    with pytest.raises(ValueError, match=r"steps \("):
        add_admm_penalty(0.1, project_fn).init(params)
    with pytest.raises(ValueError, match=r"steps are .*\[2, 2\]; expected one or more floating-point"):
        masks_of({"steps": Irregular(0.5)}, params)
    np.testing.assert_array_equal(project_fn(params)["steps"], params["steps"])
    penalty().update(params, penalty().init(params), params, dual_step=True)
    if dtype is not bool:
        keep = keep_masked(masks_of(SPECS, params))
        updates, _ = keep.update(params, keep.init(params), params)
        chex.assert_trees_all_equal_dtypes(updates, params)


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dual_steps_in_every_wrapper_equal_those_of_the_updates_seen(name: str, dtype: Any) -> None:
    """Without an extra argument, and the state is donated with the params."""
    params = params_of(dtype)
    tx, plain = WRAPPERS[name](penalty(dual_interval=3)), penalty(dual_interval=3)
    state, expected = tx.init(params), plain.init(params)
    for leaves in (jax.tree.leaves((params, state)), jax.tree.leaves((params, expected))):
        assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    update = jax.jit(lambda g, s, p: (tx.update(g, s, p)[1], p), donate_argnums=(1, 2))
    every = 2 if name == "MultiSteps" else 1
    gradients = params_of(dtype)
    for number in range(8 * every):
        state, params = update(gradients, state, params)
        if number % every == every - 1:
            _, expected = plain.update(gradients, expected, params)
    found = find_admm_state(state)
    assert found.num_dual_steps == 2
    chex.assert_trees_all_close(found.z, find_admm_state(expected).z)
    chex.assert_trees_all_equal_dtypes(found, find_admm_state(expected))


@given(interval=st.integers(1, 5))
@settings(deadline=None, max_examples=5)
def test_an_interval_is_the_flag_of_a_loop(interval: int) -> None:
    params = params_of()
    counted, flagged = penalty(dual_interval=interval), penalty()
    by_count, by_flag = counted.init(params), flagged.init(params)
    update_counted, update_flagged = jax.jit(counted.update), jax.jit(flagged.update)
    for step in range(7):
        updates, by_count = update_counted(params, by_count, params)
        flag = step > 0 and step % interval == 0
        expected, by_flag = update_flagged(params, by_flag, params, dual_step=flag)
        chex.assert_trees_all_equal(updates, expected)
    found, expected = find_admm_state(by_count), find_admm_state(by_flag)
    assert expected.dual_interval is None and int(found.dual_interval) == interval
    chex.assert_trees_all_equal(found._replace(dual_interval=None), expected)


def test_flags_that_a_wrapper_loses_are_refused() -> None:
    params = params_of()
    for name in ("MultiSteps", "apply_if_finite"):
        with pytest.raises(ValueError, match="leaves updates out.*dual_interval=n"):
            find_admm_state(WRAPPERS[name](penalty()).init(params))
    assert isinstance(find_admm_state(WRAPPERS["partition"](penalty()).init(params)), AdmmState)
    tx = penalty(dual_interval=2)
    with pytest.raises(ValueError, match="dual_step is True.*one of the two"):
        tx.update(params, tx.init(params), params, dual_step=True)


@pytest.mark.parametrize("name", WRAPPERS)
def test_masks_hold_in_every_wrapper(name: str) -> None:
    params = params_of()
    masks = masks_of(SPECS, params)
    params = apply_masks(masks, params)
    tx = WRAPPERS[name](keep_masked(masks)) if name != "chain" else optax.chain(optax.adam(0.1), keep_masked(masks))
    state, update = tx.init(params), jax.jit(tx.update)
    for number in range(4):
        updates, state = update(params_of(), state, params)
        params = optax.apply_updates(params, updates)
        for weights, keep in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True):
            assert not weights[~keep].any(), number


@pytest.mark.parametrize("dtype", FLOATS[:3])
def test_masked_weights_are_zero_at_once_in_every_dtype(dtype: Any) -> None:
    params = params_of(dtype)
    tx = keep_masked(masks_of(SPECS, params))
    narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    after = optax.apply_updates(params, tx.update(narrow, tx.init(params), params)[0])
    chex.assert_trees_all_equal_dtypes(after, params)
    assert not after["conv"]["kernel"][~masks_of(SPECS, params)["conv"]["kernel"]].any()


def test_a_projection_that_changes_nothing_gives_no_alias_of_the_params() -> None:
    params = params_of()
    tx = add_admm_penalty(0.1, lambda w: w)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, dual_step=True), donate_argnums=(1, 2))
    for init in (tx.init, jax.jit(tx.init)):
        weights = jax.tree.map(jnp.copy, params)
        step(params, init(weights), weights)
    tx = keep_masked(dict.fromkeys(["a", "b"], jnp.ones(3, bool)))  # one array twice
    weights = {"a": jnp.ones(3), "b": jnp.zeros(3)}
    state = tx.init(weights)
    jax.jit(lambda g, s, p: tx.update(g, s, p), donate_argnums=(1, 2))(weights, state, jax.tree.map(jnp.copy, weights))


def test_residuals_outlive_a_donated_state() -> None:
    params = params_of()
    tx = add_admm_penalty(0.1, project_fn)
    state = tx.init(params)
    found = jax.jit(lambda state: residuals(state, params, project_fn))(state)
    jax.jit(lambda state: tx.update(params, state, params, dual_step=True)[1], donate_argnums=0)(state)
    jax.block_until_ready(jax.tree.map(lambda leaf: leaf + 0, found))


def test_rho_may_be_traced() -> None:
    params = params_of()
    make = lambda rho: add_admm_penalty(rho, project_fn)
    update = lambda rho: make(rho).update(params, make(rho).init(params), params, dual_step=True)[0]
    rhos = jnp.asarray([0.1, 1.0])
    for number, rho in enumerate([0.1, 1.0]):
        for found in (jax.jit(update)(rho), jax.tree.map(lambda leaf, n=number: leaf[n], jax.vmap(update)(rhos))):
            chex.assert_trees_all_close(found, update(rho), rtol=1e-6)
    tx = optax.inject_hyperparams(make)(rho=1.0)
    found = jax.jit(lambda: tx.update(params, tx.init(params), params, dual_step=True)[0])()
    chex.assert_trees_all_close(found, update(1.0), rtol=1e-6)


@pytest.mark.parametrize("rho", [0, -1.0, np.nan, np.inf, np.float32(0), jnp.nan, jnp.zeros(()), jnp.ones(2)])
def test_a_rho_that_can_be_seen_is_checked(rho: Any) -> None:
    with pytest.raises(ValueError, match="rho is .*; expected one finite number above 0"):
        add_admm_penalty(rho, project_fn)


@pytest.mark.parametrize("interval", [0, -2, 0.5, np.nan])
def test_an_interval_is_checked(interval: Any) -> None:
    with pytest.raises(ValueError, match="dual_interval is"):
        add_admm_penalty(1.0, project_fn, dual_interval=interval)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_weights_that_cannot_be_ranked_are_refused_by_name(bad: float) -> None:
    params = params_of()
    params["conv"]["kernel"] = params["conv"]["kernel"].at[0, 0, 0, 1].set(bad)
    tx = add_admm_penalty(1.0, project_fn)
    for function in (project_fn, functools.partial(masks_of, SPECS), tx.init):
        with pytest.raises(ValueError, match="conv/kernel has numbers that are NaN, infinite"):
            function(params)
    for function in (project, mask):
        with pytest.raises(ValueError, match="weights has numbers that are NaN, infinite"):
            function(Filter(0.5), params["conv"]["kernel"])
    if bad != 1e30:
        with pytest.raises(ValueError, match="conv/kernel has numbers"):
            count_sparsity(params)
    beside = params_of()
    beside["conv"]["bias"] = beside["conv"]["bias"].at[0].set(np.nan)
    with pytest.raises(ValueError, match="conv/bias has numbers"):
        masks_of(SPECS, beside)


@pytest.mark.parametrize("kind", [Filter, Column, Irregular])
@given(place=st.integers(0, 7), bias=st.integers(0, 3), budget=st.sampled_from(["layer", "global"]))
@settings(deadline=None, max_examples=8)
def test_nan_stays_nan_under_jit(kind: type, place: int, bias: int, budget: str) -> None:
    params = params_of()
    params["conv"]["kernel"] = params["conv"]["kernel"].ravel().at[place].set(np.nan).reshape(1, 1, 2, 4)
    params["conv"]["bias"] = params["conv"]["bias"].at[bias].set(np.nan)
    specs = {"conv/kernel": kind(0.75, budget)}
    found = jax.jit(functools.partial(project_tree, specs))(params)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(np.isnan(before), np.isnan(after))
    kept = jax.jit(functools.partial(masks_of, specs))(params)["conv"]["kernel"]
    assert kept.ravel()[place] and kept.sum() == {Filter: 2, Column: 4, Irregular: 2}[kind]


def test_nan_is_the_largest() -> None:
    np.testing.assert_array_equal(keep_largest(jnp.array([1.0, np.nan, 3.0, 2.0]), 2), [False, True, True, False])


def test_no_weights_are_no_zeros() -> None:
    assert count_sparsity({})["overall"] == {"size": 0, "zeros": 0, "sparsity": 0.0, "leftovers": 0}
    assert count_sparsity({"norm": {"scale": jnp.ones(3)}})["overall"]["sparsity"] == 0.0
    assert count_sparsity({"fc": {"kernel": jnp.ones((0, 3))}})["layers"]["fc/kernel"]["sparsity"] == 0.0


class NnxNetwork(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(2, 4, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x).sum((1, 2))


NAMES = {
    "to_pure_dict": (nnx.to_pure_dict, "conv/kernel"),
    "as_pure": (nnx.as_pure, "conv/kernel"),
    "State": (lambda state: state, "conv/kernel"),
    "State, value": (lambda state: state, "conv/kernel/value"),
}


@pytest.mark.parametrize("way", NAMES)
def test_nnx_optimizer_prunes_as_a_direct_update(way: str) -> None:
    tree_of, name = NAMES[way]
    network = NnxNetwork(nnx.Rngs(0))
    specs = {name: Filter(0.5)}
    tree = tree_of(nnx.state(network, nnx.Param))
    mask_tree = (lambda params: selected(specs, params)) if way == "to_pure_dict" else selected(specs, tree)
    inner = optax.masked(add_admm_penalty(0.5, functools.partial(project_tree, specs)), mask_tree)
    pruned = optax.chain(inner, optax.sgd(0.1))
    retrained = optax.chain(optax.sgd(0.1), keep_masked(masks_of(specs, tree)))
    gradients = nnx.grad(lambda model: model(jnp.ones((2, 3, 3, 2))).sum())(network)
    start, pull = (nnx.to_pure_dict(nnx.state(one, nnx.Param)) for one in (network, gradients))
    for tx, extra in ((pruned, {"dual_step": True}), (retrained, {})):
        model = NnxNetwork(nnx.Rngs(0))
        nnx.Optimizer(model, tx, wrt=nnx.Param).update(model, gradients, **extra)
        specs_of_dict = {"conv/kernel": Filter(0.5)}
        direct = optax.chain(
            optax.masked(
                add_admm_penalty(0.5, functools.partial(project_tree, specs_of_dict)), selected(specs_of_dict, start)
            ),
            optax.sgd(0.1),
        )
        if not extra:
            direct = optax.chain(optax.sgd(0.1), keep_masked(masks_of(specs_of_dict, start)))
        expected = optax.apply_updates(start, direct.update(pull, direct.init(start), start, **extra)[0])
        chex.assert_trees_all_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), expected, rtol=1e-6)


def test_only_selected_looks_through_nnx_state() -> None:
    state = nnx.state(NnxNetwork(nnx.Rngs(0)), nnx.Param)
    assert len(jax.tree.leaves(only_selected({"conv/kernel": Irregular(0.5)}, state))) == 1
