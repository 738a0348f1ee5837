"""Pruned weights stay at exactly zero under every optimizer, and the biases of removed filters with them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rap_jax.config import OptimizerConfig
from rap_jax.pruning.masks import apply_masks, both, keep_masked
from rap_jax.pruning.projections import Column, Filter, Irregular
from rap_jax.pruning.specs import masks_of, masks_of_zeros, project_tree
from rap_jax.training.optimizer import make_optimizer

pytestmark = pytest.mark.usefixtures("optimised")

PARAMS = {
    "conv1": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 4)), "bias": jnp.arange(1.0, 5.0)},
    "fc1": {"kernel": jax.random.normal(jax.random.key(1), (6, 4)), "bias": jnp.ones(4)},
}
OPTIMIZERS = [
    OptimizerConfig("adam", 0.1),
    OptimizerConfig("adam", 0.1, weight_decay=0.1),
    OptimizerConfig("sgd", 0.1, momentum=0.0),
    OptimizerConfig("sgd", 0.1, momentum=0.9, weight_decay=0.1),
]


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda c: f"{c.name}-{c.momentum}-{c.weight_decay}")
@pytest.mark.parametrize("kind", [Irregular, Filter, Column])
def test_exact_zeros_after_ten_steps(config: OptimizerConfig, kind: type) -> None:
    masks = masks_of({"conv1/kernel": kind(0.5), "fc1/kernel": kind(0.5)}, PARAMS)
    tx = make_optimizer(config, optax.constant_schedule(0.1), masks=masks)
    params = PARAMS  # not yet zero where the mask is False: the first step must see to it
    state = tx.init(params)
    step = jax.jit(lambda params, state, g: tx.update(g, state, params, dual_step=False))
    for number in range(10):
        gradients = optax.tree.random_like(jax.random.key(number), params)
        updates, state = step(params, state, gradients)
        params = optax.apply_updates(params, updates)
        for weights, mask, start in zip(*map(jax.tree.leaves, (params, masks, PARAMS)), strict=True):
            np.testing.assert_array_equal(weights[~mask], 0)
            assert (weights[mask] != start[mask]).all()  # the others do learn


def test_the_bias_of_a_filter_that_is_gone_goes_with_it() -> None:
    kernel = PARAMS["fc1"]["kernel"].at[:, 2].set(0.0)
    params = PARAMS | {"fc1": {"kernel": kernel, "bias": jnp.ones(4)}}
    masks = masks_of({"conv1/kernel": Filter(0.5), "fc1/kernel": Irregular(0.25)}, params)
    alive = np.asarray(masks["conv1"]["kernel"]).any((0, 1, 2))
    assert alive.sum() == 2
    np.testing.assert_array_equal(masks["conv1"]["bias"], alive)
    np.testing.assert_array_equal(masks["fc1"]["bias"], [True, True, False, True])
    cut = apply_masks(masks, params)
    np.testing.assert_array_equal(np.asarray(cut["conv1"]["bias"]) != 0, alive)


def test_layers_without_a_spec_keep_everything() -> None:
    masks = masks_of({"fc1/kernel": Filter(0.5)}, PARAMS)
    assert masks["conv1"]["kernel"].all() and masks["conv1"]["bias"].all()


def test_both_is_what_survives_twice() -> None:
    masks, other = {"w": jnp.array([True, True, False, False])}, {"w": jnp.array([True, False, True, False])}
    np.testing.assert_array_equal(both(masks, other)["w"], [True, False, False, False])


def test_zeros_of_an_earlier_cut_stay_and_the_rest_learns() -> None:
    """Progressive pruning: a network with zeros trains densely but for them."""
    norm = {"scale": jnp.ones(4), "shift": jnp.zeros(4)}
    params = {"conv1": PARAMS["conv1"] | norm, "fc1": PARAMS["fc1"]}
    cut = project_tree({"conv1/kernel": Filter(0.5), "fc1/kernel": Irregular(0.5)}, params)
    masks = masks_of_zeros(cut)
    tx = make_optimizer(OPTIMIZERS[1], optax.constant_schedule(0.1), masks=masks)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, cut), tx.init(cut), cut, dual_step=False)
    trained = optax.apply_updates(cut, updates)
    for weights, mask in zip(jax.tree.leaves(trained), jax.tree.leaves(masks), strict=True):
        np.testing.assert_array_equal(np.asarray(weights) != 0, mask)
    assert int((trained["conv1"]["shift"] != 0).sum()) == 2  # zero before, but not pruned


def test_refuses() -> None:
    tx = keep_masked(jax.tree.map(lambda w: jnp.ones(w.shape, bool), PARAMS))
    with pytest.raises(ValueError, match="params"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(ValueError, match="masks have fc1/bias, fc1/kernel; expected names of conv1/bias, conv1/kernel"):
        tx.init({"conv1": PARAMS["conv1"]})


@pytest.mark.parametrize(
    "bad", [lambda m: m[:1], lambda m: m[..., :1], lambda m: m.astype(jnp.float32), lambda m: True, lambda m: None]
)
def test_masks_of_another_shape_or_dtype_are_refused_by_name(bad: Callable[[jax.Array], Any]) -> None:
    masks = jax.tree.map(lambda w: jnp.ones(w.shape, bool), PARAMS)
    broken = {**masks, "fc1": {**masks["fc1"], "kernel": bad(masks["fc1"]["kernel"])}}
    for call in (
        lambda: apply_masks(broken, PARAMS),
        lambda: keep_masked(broken).init(PARAMS),
        lambda: both(masks, broken),
    ):
        with pytest.raises(ValueError, match=r"mask of fc1/kernel is .*; expected bool\[6, 4\]"):
            call()
    with pytest.raises(ValueError, match="fc1/kernel"):
        both(broken, masks)


def test_masks_that_are_floats_both_are_refused() -> None:
    with pytest.raises(ValueError, match="mask of conv1/bias is float32"):
        both(PARAMS, PARAMS)


def test_plain_masks_apply_to_an_nnx_state() -> None:
    masks = masks_of({"fc1/kernel": Filter(0.5)}, PARAMS)
    cut = apply_masks(masks, nnx.State(jax.tree.map(nnx.Param, PARAMS)))
    assert isinstance(cut, nnx.State)
    for found, expected in zip(jax.tree.leaves(cut), jax.tree.leaves(apply_masks(masks, PARAMS)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_masks_of_the_whole_tree_hold_where_optax_hides_a_branch() -> None:
    masks = masks_of({"fc1/kernel": Filter(0.5)}, PARAMS)
    tx = optax.masked(keep_masked(masks), {"conv1": False, "fc1": True})
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, PARAMS), tx.init(PARAMS), PARAMS)
    trained = optax.apply_updates(PARAMS, updates)
    assert not np.asarray(trained["fc1"]["kernel"])[~np.asarray(masks["fc1"]["kernel"])].any()
    with pytest.raises(ValueError, match=r"masks_of\(specs, tree\) of that part, or let keep_masked be the outermost"):
        keep_masked(masks).init({"fc1": PARAMS["fc1"]})
