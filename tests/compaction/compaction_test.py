"""Networks without removable channels: the same function, and the original shapes again."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_networks import random_weights
from tiers import large_later

from rap_jax.compaction import Wiring, compaction_plan, expand, shrink
from rap_jax.config import ModelConfig
from rap_jax.models import NETWORKS, Model, create_model
from rap_jax.models.model import Weights

SHAPES = {"lenet_mnist": (8, 12, 1), "lenet_mnist_bn": (8, 12, 1), "lenet_cifar": (24, 20, 3)}
WIDTH = 2


@functools.cache
def network(name: str, features: tuple[tuple[str, int], ...] = ()) -> Model:
    shape: Any = SHAPES.get(name, (32, 32, 3))
    changes: Any = {"implementation": "xla", "features": dict(features)}  # that implementation is quick to compile
    return create_model(ModelConfig(name, WIDTH), input_shape=shape, num_classes=10, **changes)


@functools.cache
def shapes_of(model: Model) -> tuple[Any, Any]:
    return jax.eval_shape(model.init, jax.random.key(0))


def weights_for(model: Model) -> tuple[Any, Any]:
    params, batch_stats = shapes_of(model)
    return random_weights(params, 0), random_weights(batch_stats, 1)


def at(tree: Any, path: str) -> Any:
    return functools.reduce(lambda branch, key: branch[key], path.split("/"), tree)


def remove_filters(params: Any, layer: str, gone: np.ndarray) -> None:
    """Zeroes the outputs, in place, with all that belongs to them."""
    for leaf in at(params, layer).values():
        leaf[..., gone] = 0


def logits(model: Model, params: Any, batch_stats: Any, train: bool) -> Any:
    images = jax.random.uniform(jax.random.key(2), (3, *model.input_shape))
    return jax.jit(model.apply, static_argnames="train")(params, batch_stats, images, train=train)


@pytest.mark.parametrize("name", large_later(NETWORKS))
def test_the_small_network_is_the_same_function(name: str) -> None:
    model, generator = network(name), np.random.default_rng(0)
    params, batch_stats = weights_for(model)
    alive: dict[str, np.ndarray] = {}
    for layer, group in model.wiring.groups.items():
        some = generator.permutation(np.arange(at(params, group)["kernel"].shape[-1]) % 3 > 0)
        alive[layer] = alive.setdefault(group, some)
        remove_filters(params, layer, ~alive[layer])  # of all layers that add up, and of the norm behind the sum
    plan = compaction_plan(model.wiring, params)
    chex.assert_trees_all_equal(dict(plan.kept), alive)
    small = network(name, tuple(sorted(plan.features.items())))
    small_params, small_stats = shrink(plan, params), shrink(plan, batch_stats)
    # Also refuses a network whose `READS` forgets a reader: its inputs would have shrunk here and not there.
    expected = jax.eval_shape(small.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(Weights(small_params, small_stats), expected)
    for train in (False, True):
        large_logits, large_stats = logits(model, params, batch_stats, train)
        found, found_stats = logits(small, small_params, small_stats, train)
        np.testing.assert_allclose(found, large_logits, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(found_stats, shrink(plan, large_stats), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", large_later(["resnet18", "wide_resnet28"]))
def test_channels_that_add_up_get_no_gradient_once_they_send_nothing(name: str) -> None:
    model = network(name)
    params, batch_stats = weights_for(model)
    for layer in model.wiring.groups:
        remove_filters(
            params, layer, np.arange(at(params, layer)["scale" if "norm" in layer else "kernel"].shape[-1]) < 2
        )
    plan = compaction_plan(model.wiring, params)
    loss = lambda params: jnp.square(logits(model, params, batch_stats, True)[0]).sum()
    gradients = jax.jit(jax.grad(loss))(params)
    there = expand(plan, shrink(plan, gradients), jax.tree.map(np.zeros_like, params))
    for layer in model.wiring.groups:  # what reads them does not, and multiplies zeros
        chex.assert_trees_all_equal(
            jax.tree.map(lambda leaf: leaf[..., :2], at(gradients, layer)),
            jax.tree.map(lambda leaf: leaf[..., :2], at(there, layer)),
        )


def test_features_of_other_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="features is 'fc2'; expected layers whose .* is free: conv1, conv2, fc1"):
        network("lenet_mnist", (("fc2", 4),))
    with pytest.raises(ValueError, match="features of group1_block0/conv2 is None; expected 4, as of conv1, to which"):
        network("resnet18", (("conv1", 4),))
    with pytest.raises(ValueError, match="features of conv1 is 0; expected 1 or more"):
        network("lenet_mnist", (("conv1", 0),))


def lenet() -> tuple[Model, Any, Any]:
    """Its weights, and masks that are True everywhere."""
    model = network("lenet_mnist")
    params = weights_for(model)[0]
    return model, params, jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)


def hold(params: Any, masks: Any, layer: str, inputs: Any) -> None:
    for tree in (params, masks):
        tree[layer]["kernel"][..., inputs, :] = 0


def test_outputs_that_nobody_reads_go_where_the_masks_hold_the_zeros() -> None:
    model, params, masks = lenet()
    hold(params, masks, "conv2", [1])
    hold(params, masks, "fc1", np.arange(5, 6 * 8, 8))  # channel 5 of 8, at all 2x3 places
    hold(params, masks, "fc1", [6])  # channel 6 at one place only
    params["fc2"]["kernel"][3] = 0  # not held: it would grow again
    plan = compaction_plan(model.wiring, params, masks)
    assert plan.features == {"conv1": 3, "conv2": 7}
    assert not plan.kept["conv1"][1] and not plan.kept["conv2"][5]
    assert compaction_plan(model.wiring, params).features == {}
    small = network("lenet_mnist", tuple(plan.features.items()))
    expected, found = logits(model, params, {}, False), logits(small, shrink(plan, params), {}, False)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert not shrink(plan, masks)["fc1"]["kernel"].all()  # channel 6 stays, with a zero


def test_what_a_removal_leaves_without_inputs_or_readers_goes_too() -> None:
    model, params, masks = lenet()
    remove_filters(params, "conv1", np.array([2]))
    params["conv2"]["kernel"][..., [0, 1, 3], 4] = 0  # filter 4 reads filter 2 alone
    params["conv2"]["bias"][4] = 0
    remove_filters(params, "fc1", np.arange(1, 128))
    others = np.setdiff1d(np.arange(48), np.arange(7, 48, 8))
    hold(params, masks, "fc1", others)  # the only neuron left reads channel 7 alone
    plan = compaction_plan(model.wiring, params, masks)
    assert plan.features == {"conv1": 3, "conv2": 1, "fc1": 1}
    assert compaction_plan(model.wiring, params).features == {"conv1": 3, "conv2": 7, "fc1": 1}
    assert plan.kept["conv2"].argmax() == 7


def test_a_constant_is_not_nothing() -> None:
    model, params, _ = lenet()
    params["conv1"]["kernel"][..., 0] = 0  # its bias is still sent
    assert compaction_plan(model.wiring, params).features == {}
    resnet = network("resnet18")
    params, _ = weights_for(resnet)
    for leaf in ("kernel", "scale"):
        params["group1_block0"]["conv1"][leaf][..., 0] = 0  # its shift is still sent
    remove_filters(params, "conv1", np.array([0]))  # of a sum to which others add
    assert compaction_plan(resnet.wiring, params).features == {}


def test_one_output_of_each_layer_stays() -> None:
    model, params, masks = lenet()
    zeros, none = jax.tree.map(np.zeros_like, params), jax.tree.map(np.zeros_like, masks)
    assert compaction_plan(model.wiring, zeros, none).features == {"conv1": 1, "conv2": 1, "fc1": 1}


def test_expand_takes_back_what_shrink_gave_and_leaves_the_rest() -> None:
    model, params, _ = lenet()
    remove_filters(params, "conv1", np.array([0, 3]))
    remove_filters(params, "conv2", np.array([2]))
    plan = compaction_plan(model.wiring, params)
    chex.assert_trees_all_equal(expand(plan, shrink(plan, params), params), params)
    marked = expand(plan, jax.tree.map(lambda leaf: np.full(leaf.shape, 7.0), shrink(plan, params)), params)
    changed = jax.tree.map(lambda leaf: leaf == 7, marked)
    np.testing.assert_array_equal(changed["conv1"]["bias"], [False, True, True, False])
    reads = np.array([False, True, True, False]).reshape(-1, 1) & (np.arange(8) != 2)
    np.testing.assert_array_equal(changed["conv2"]["kernel"], np.broadcast_to(reads, (5, 5, 4, 8)))
    np.testing.assert_array_equal(changed["fc1"]["kernel"][:, 0], np.arange(48) % 8 != 2)
    kept = jax.tree.map(lambda leaf, new, was: np.array_equal(leaf[~new], was[~new]), marked, changed, params)
    assert all(jax.tree.leaves(kept))
    assert params["conv2"]["kernel"].max() < 7  # the start is not written into


def test_a_tree_of_another_network_is_refused() -> None:
    model, params, _ = lenet()
    remove_filters(params, "conv1", np.array([0]))
    plan = compaction_plan(model.wiring, params)
    with pytest.raises(ValueError, match=r"conv1/bias has shape \(3,\); expected 4 outputs"):
        shrink(plan, shrink(plan, params))
    with pytest.raises(ValueError, match=r"reads names conv9; expected layers with a kernel, of conv1/"):
        compaction_plan(Wiring((("conv9", "conv1"),)), params)
    with pytest.raises(ValueError, match=r"conv2 has 4 inputs; expected a multiple of the 128 outputs of fc1"):
        compaction_plan(Wiring((("conv2", "fc1"),)), params)
    assert jax.tree.map(jnp.shape, shrink(compaction_plan(Wiring(), params), params)) == jax.tree.map(jnp.shape, params)
