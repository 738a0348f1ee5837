"""What a cut takes from a network with BatchNorm: whole outputs, one budget for many layers, earlier zeros."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from normed import NORMED, NORMED_LAYERS
from numpy_networks import random_weights
from tiers import large_later

from rap_jax.compaction.compact import compact
from rap_jax.compaction.cost import NetworkForm, multiply_adds_of
from rap_jax.compaction.cut import count_left, cut
from rap_jax.config import ModelConfig
from rap_jax.models import Model, create_model
from rap_jax.models.model import Weights
from rap_jax.pruning.budgets import best_first, layer_budgets
from rap_jax.pruning.layers import kernels, leaves_by_name, path_name
from rap_jax.pruning.masks import apply_masks, both
from rap_jax.pruning.projections import BatchNormFilter, Column, Filter, Irregular, masks_together, num_kept
from rap_jax.pruning.specs import (
    Specs,
    Structure,
    masks_of,
    masks_of_zeros,
    only_selected,
    project_tree,
    specs_from_patterns,
)


def compiled_masks_of(specs: Specs, params: chex.ArrayTree) -> chex.ArrayTree:
    """One program to compile instead of one per operation."""
    return jax.jit(functools.partial(masks_of, specs))(params)


def smallest(scores: jax.Array, count: int) -> np.ndarray:
    """False at the `count` smallest."""
    alive = np.ones(len(scores), bool)
    alive[np.argsort(np.asarray(scores))[:count]] = False
    return alive


@pytest.mark.parametrize("key,kind", [("conv1/kernel", Filter), ("conv1/scale", BatchNormFilter)])
def test_the_cut_takes_the_whole_filter(key: str, kind: type) -> None:
    name = f"group1_block0/{key}"
    params = NORMED["group1_block0"]["conv1"]
    by = jnp.sum(params["kernel"] ** 2, (0, 1, 2)) if kind is Filter else jnp.abs(params["scale"])
    found = compiled_masks_of({name: kind(1 / 3)}, NORMED)
    for leaf, mask in found["group1_block0"]["conv1"].items():
        np.testing.assert_array_equal(mask, np.broadcast_to(smallest(by, 2), params[leaf].shape))
    assert all(mask.all() for mask in jax.tree.leaves((found["conv1"], found["group1_block0"]["shortcut"])))


@pytest.mark.parametrize("key,kind", [("conv1/kernel", Filter), ("conv1/scale", BatchNormFilter)])
def test_the_projection_of_what_admm_sees_is_that_of_the_whole(key: str, kind: type) -> None:
    chosen = {key: kind(0.5)}
    seen = only_selected(chosen, NORMED)
    found, whole = project_tree(chosen, seen), project_tree(chosen, NORMED)
    assert isinstance(found["conv1"]["kernel"], optax.MaskedNode) == (kind is BatchNormFilter)
    chex.assert_trees_all_equal(found, only_selected(chosen, whole))


@pytest.mark.parametrize("kind", [Irregular, Filter, Column, BatchNormFilter])
def test_one_budget_is_shared_in_the_order_of_the_tree(kind: type) -> None:
    leaf = "scale" if kind is BatchNormFilter else "kernel"
    names = [f"{name}/{leaf}" for name in reversed(NORMED_LAYERS)]
    equal = jax.tree.map(jnp.ones_like, NORMED)
    for params in (NORMED, equal):
        found = compiled_masks_of({name: kind(0.6, "global") for name in names}, params)
        layers = [tree["conv1"] for tree in (params, params["group1_block0"])] + [params["group1_block0"]["shortcut"]]
        expected = jax.jit(masks_together, static_argnums=0)(kind(0.6), [layer[leaf] for layer in layers])
        layers = [tree["conv1"] for tree in (found, found["group1_block0"])] + [found["group1_block0"]["shortcut"]]
        chex.assert_trees_all_equal([layer[leaf] for layer in layers], expected)
        for layer in layers:  # scale and shift follow the kernel in any case
            np.testing.assert_array_equal(layer["shift"], layer["kernel"].any((0, 1, 2)))
    assert layers[0]["kernel"].all() and layers[2]["kernel"].sum() < layers[2]["kernel"].size


def test_a_global_budget_beside_others() -> None:
    chosen = {"conv1/kernel": Filter(0.5, "global"), "fc/kernel": Irregular(0.5)}
    masks = compiled_masks_of(chosen, NORMED)
    assert (int(masks["fc"]["kernel"].sum()), int(masks["conv1"]["scale"].sum())) == (30, 2)


def test_a_scale_of_something_else_leaves_the_kernel_alone() -> None:
    """A BatchNorm before its convolution has one number per input."""
    params = {"conv1": {"kernel": jnp.ones((3, 2, 4)), "scale": jnp.array([1.0, 2.0]), "shift": jnp.ones(2)}}
    masks = masks_of({"conv1/scale": BatchNormFilter(0.5)}, params)["conv1"]
    np.testing.assert_array_equal(masks["shift"], [False, True])
    assert masks["kernel"].all()


def test_scales_that_start_at_zero_are_not_gone() -> None:
    params = NORMED | {"conv1": NORMED["conv1"] | {"scale": jnp.zeros(4)}}
    chosen = {"conv1/scale": BatchNormFilter(0.5)}
    for tree in (params, only_selected(chosen, params)):
        np.testing.assert_array_equal(masks_of(chosen, tree)["conv1"]["shift"], [True, True, False, False])


def test_masks_of_zeros() -> None:
    assert all(mask.all() for mask in jax.tree.leaves(masks_of_zeros(NORMED)))
    conv = NORMED["conv1"] | {"shift": jnp.zeros(4), "bias": jnp.zeros(4)}
    conv["kernel"] = conv["kernel"].at[..., 1].set(0.0).at[0, 0, 0, 2].set(0.0)
    found = jax.jit(masks_of_zeros)(NORMED | {"conv1": conv})
    np.testing.assert_array_equal(found["conv1"]["kernel"], conv["kernel"] != 0)
    for leaf in ("bias", "scale", "shift"):  # the other zeros are where BatchNorm starts
        np.testing.assert_array_equal(found["conv1"][leaf], [True, False, True, True])
    assert all(mask.all() for mask in jax.tree.leaves(found["group1_block0"]))


@pytest.mark.parametrize("kind", [Irregular, Filter, Column, BatchNormFilter])
@pytest.mark.parametrize("budget", ["layer", "global"])
def test_pruning_again_counts_what_is_gone_already(kind: type, budget: str) -> None:
    """0.75 after 0.5 is 0.75 in all and keeps no weight that was gone; 0.25 after 0.5 brings none back."""
    leaf = "scale" if kind is BatchNormFilter else "kernel"
    specs_at = lambda ratio: {f"group1_block0/{name}/{leaf}": kind(ratio, budget) for name in ("conv1", "shortcut")}
    gone = apply_masks(compiled_masks_of(specs_at(0.5), NORMED), NORMED)
    more = compiled_masks_of(specs_at(0.75), gone)
    once = compiled_masks_of(specs_at(0.75), NORMED)
    for chosen in ("conv1", "shortcut"):
        np.testing.assert_array_equal(more["group1_block0"][chosen][leaf], once["group1_block0"][chosen][leaf])
        assert (np.asarray(gone["group1_block0"][chosen][leaf])[more["group1_block0"][chosen][leaf]] != 0).all()
    held = both(compiled_masks_of(specs_at(0.25), gone), masks_of_zeros(gone))
    chex.assert_trees_all_equal(held["group1_block0"], jax.tree.map(lambda w: w != 0, gone["group1_block0"]))


def test_the_cut_takes_a_norm_behind_a_sum_with_the_last_filter_of_its_channel() -> None:
    model = create_model(ModelConfig("wide_resnet28", 1), input_shape=(8, 8, 3), num_classes=10, implementation="xla")
    params, batch_stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), jax.eval_shape(model.init, jax.random.key(0)))
    groups = model.wiring.groups
    writers = [layer for layer in groups if groups[layer] == groups["conv1"] and layer not in model.wiring.norms]
    weakened: Any = {f"{layer}/kernel" for layer in writers}

    def weaken(path: tuple[object, ...], leaf: jax.Array) -> jax.Array:
        return leaf.at[..., 3].multiply(0.1) if path_name(path) in weakened else leaf

    params = jax.tree_util.tree_map_with_path(weaken, params)
    found = cut({name: Filter(1 / 16) for name in weakened}, model, Weights(params, batch_stats)).params
    for norm in ("group1_block0/norm1", "group1_block3/norm1"):
        for leaf in functools.reduce(lambda tree, name: tree[name], norm.split("/"), found).values():
            np.testing.assert_array_equal(np.asarray(leaf) == 0, np.arange(16) == 3)
    assert np.all(found["norm"]["scale"] == 1)


def left(specs: Specs, model: Any, weights: Weights, of: str) -> int:
    """Weights or multiply-adds that are not zero once the network is cut and compacted."""
    small = compact(model, *cut(specs, model, weights))
    if of == "parameters":
        return sum(int(np.count_nonzero(kernel)) for _, kernel in kernels(small.params))
    return multiply_adds_of(NetworkForm(small.model, small.weights)).effective


def network(name: Any) -> tuple[Model, Weights]:
    shape: Any = (28, 28, 1) if name.startswith("lenet") else (32, 32, 3)
    model = create_model(ModelConfig(name, 2), input_shape=shape, num_classes=10, implementation="xla")
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    return model, Weights(random_weights(params, 0), random_weights(batch_stats, 1))


def with_all(found: Specs, specs: Specs, weights: Weights) -> dict[str, int]:
    """Structures that each layer keeps."""
    sizes = {name: len(best_first(spec, leaves_by_name(weights.params)[name])[0]) for name, spec in specs.items()}
    return {name: num_kept(found[name], size) if name in found else size for name, size in sizes.items()}


COUNTED = [
    ("lenet_mnist", "filter"),
    ("lenet_mnist_bn", "bn_filter"),
    ("resnet18", "filter"),
    ("wide_resnet28", "bn_filter"),
]


@pytest.mark.parametrize(("name", "structure"), large_later(COUNTED))
def test_a_budget_counts_what_compaction_leaves(name: Any, structure: Structure) -> None:
    model, weights = network(name)
    specs = specs_from_patterns((("*", 0.5),), weights.params, structure=structure, output_layer=model.output_layer)
    for rule, of in (("erk", "parameters"), ("lamp", "multiply_adds")):
        count, total = count_left(specs, model, weights, of=of), left(specs, model, weights, of)
        found = layer_budgets(specs, weights.params, rule=rule, count=count)
        kept = with_all(found, specs, weights)
        assert 0.7 * total < count(kept) <= total == count(with_all(specs, specs, weights))
        assert count(kept) == left(found, model, weights, of)


def test_a_budget_of_single_weights_counts_their_multiply_adds() -> None:
    """784 places, 196, and 1 in the dense layers."""
    model, weights = network("lenet_mnist")
    specs = specs_from_patterns((("*", 0.5),), weights.params, structure="irregular", output_layer=model.output_layer)
    count = count_left(specs, model, weights, of="multiply_adds")
    assert count({"conv1/kernel": 2, "conv2/kernel": 3, "fc1/kernel": 4, "fc2/kernel": 5}) == 2 * 784 + 3 * 196 + 9
    assert count_left(specs, model, weights)({"conv1/kernel": 2, "fc2/kernel": 5}) == 7


def test_a_budget_does_not_count_what_is_gone_already() -> None:
    model, weights = network("lenet_mnist")
    specs = {"conv2/kernel": Filter(0.5), "fc1/kernel": Filter(0.5)}
    weights = cut(specs, model, weights)
    count, all_of_them = count_left(specs, model, weights), with_all({}, specs, weights)
    assert count(with_all(specs, specs, weights)) == count(all_of_them) == left({}, model, weights, "parameters")
