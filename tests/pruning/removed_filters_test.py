"""End to end on a toy of two layers of convolution, BatchNorm and ReLU: a removed filter sends exactly nothing."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from normed import layer

from rap_jax.pruning.admm import add_admm_penalty
from rap_jax.pruning.masks import apply_masks, count_sparsity, keep_masked
from rap_jax.pruning.projections import BatchNormFilter, Filter
from rap_jax.pruning.specs import Specs, masks_of, project_tree, selected

pytestmark = pytest.mark.usefixtures("optimised")

PARAMS = {"conv1": layer(4, 2, 0), "conv2": layer(6, 4, 1)}
IMAGES = jax.random.normal(jax.random.key(2), (8, 5, 5, 2))
TARGET = jax.random.normal(jax.random.key(3), (8, 5, 5, 6))
KINDS = [("kernel", Filter), ("scale", BatchNormFilter)]


class Statistics(NamedTuple):
    mean: jax.Array
    variance: jax.Array


def conv_norm_relu(params: chex.ArrayTree, images: jax.Array, running: Statistics | None) -> jax.Array:
    """With the statistics of the batch where there are no running ones."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    features = jax.lax.conv_general_dilated(images, params["kernel"], (1, 1), "SAME", dimension_numbers=dimensions)
    features = features + params["bias"].reshape(1, 1, 1, -1)
    mean = features.mean((0, 1, 2), keepdims=True) if running is None else running.mean.reshape(1, 1, 1, -1)
    variance = features.var((0, 1, 2), keepdims=True) if running is None else running.variance.reshape(1, 1, 1, -1)
    normal = (features - mean) * jax.lax.rsqrt(variance + 1e-5)
    return jax.nn.relu(normal * params["scale"].reshape(1, 1, 1, -1) + params["shift"].reshape(1, 1, 1, -1))


def hidden_and_output(params: chex.ArrayTree, seed: int | None = None) -> list[jax.Array]:
    """What each layer sends; with a seed in evaluation mode, at running statistics drawn from it."""
    features, sent = IMAGES, []
    for number, name in enumerate(("conv1", "conv2")):
        keys = jax.random.split(jax.random.key(0 if seed is None else seed), 4)[2 * number :]
        shape = params[name]["scale"].shape
        running = Statistics(5 * jax.random.normal(keys[0], shape), jax.random.uniform(keys[1], shape))
        features = conv_norm_relu(params[name], features, None if seed is None else running)
        sent.append(features)
    return sent


def train(tx: optax.GradientTransformationExtraArgs, params: chex.ArrayTree, num_steps: int, dual: int = 0):
    loss = lambda w: jnp.mean((hidden_and_output(w)[-1] - TARGET) ** 2)

    @jax.jit
    def step(params: chex.ArrayTree, state: optax.OptState, dual_step: jax.Array):
        updates, state = tx.update(jax.grad(loss)(params), state, params, dual_step=dual_step)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for number in range(num_steps):
        params, state = step(params, state, jnp.asarray(dual > 0 and number % dual == dual - 1))
    return params


def dead_filters(specs: Specs, params: chex.ArrayTree) -> list[np.ndarray]:
    masks = masks_of(specs, params)
    return [~np.asarray(masks[name]["kernel"]).any((0, 1, 2)) for name in ("conv1", "conv2")]


@pytest.mark.parametrize("leaf,kind", KINDS)
def test_removed_filters_send_exactly_nothing(leaf: str, kind: type) -> None:
    specs = {f"conv{n}/{leaf}": kind(0.5) for n in (1, 2)}
    penalty = optax.masked(add_admm_penalty(10.0, functools.partial(project_tree, specs)), selected(specs, PARAMS))
    pulled = train(optax.chain(penalty, optax.sgd(0.05)), PARAMS, 200, dual=20)
    dead = dead_filters(specs, pulled)
    assert [int(d.sum()) for d in dead] == [2, 3]
    for sent, gone in zip(hidden_and_output(pulled), dead, strict=True):
        # Already before the cut, although BatchNorm scales up whatever a filter still sends.
        assert np.abs(sent[..., gone]).max() < 0.02 * np.abs(sent).max()

    masks = masks_of(specs, pulled)
    cut = apply_masks(masks, pulled)
    retrain = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9), keep_masked(masks))
    retrained = train(optax.with_extra_args_support(retrain), pulled, 5)  # cut by its first step
    for params in (cut, retrained):
        assert count_sparsity(params)["overall"]["leftovers"] == 0
        for seed in range(5):
            for sent, gone in zip(hidden_and_output(params, seed), dead, strict=True):
                np.testing.assert_array_equal(sent[..., gone], 0)
                assert (np.asarray(sent[..., ~gone]).reshape(-1, int((~gone).sum())) != 0).any()


@pytest.mark.parametrize("forgotten", ["scale", "shift"])
def test_without_the_belongings_they_would_go_on_sending(forgotten: str) -> None:
    """The toy can tell: a scale or a shift that stays makes a removed filter send a constant."""
    specs = {"conv1/kernel": Filter(0.5)}
    cut = project_tree(specs, PARAMS)
    cut["conv1"][forgotten] = PARAMS["conv1"][forgotten]
    gone = dead_filters(specs, PARAMS)[0]
    assert any(np.asarray(hidden_and_output(cut, seed)[0][..., gone]).any() for seed in range(5))


@pytest.mark.parametrize("leaf,kind", KINDS)
def test_admm_pulls_what_will_be_removed_and_nothing_else(leaf: str, kind: type) -> None:
    """Without a loss: of removed filters the scale, shift, bias, and under `Filter` the kernel; kept ones stay put."""
    specs = {f"conv1/{leaf}": kind(0.5)}
    penalty = optax.masked(add_admm_penalty(1.0, functools.partial(project_tree, specs)), selected(specs, PARAMS))
    updates, _ = penalty.update(
        jax.tree.map(jnp.zeros_like, PARAMS), penalty.init(PARAMS), PARAMS, dual_step=jnp.asarray(False)
    )
    gone = dead_filters(specs, PARAMS)[0]
    for name, pull in updates["conv1"].items():
        expected = np.where(gone, PARAMS["conv1"][name], 0.0)
        np.testing.assert_allclose(pull, expected if (name, kind) != ("kernel", BatchNormFilter) else 0 * expected)
    chex.assert_trees_all_equal(updates["conv2"], jax.tree.map(jnp.zeros_like, PARAMS["conv2"]))
