"""Physically smaller networks: the same logits on any input, under any masks, with BatchNorm and without."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from normed_net import add_normed_net
from numpy_networks import random_weights
from tiers import large_later, nightly_but

from rap_jax.attacks import ThreatModel, pgd
from rap_jax.compaction import CompactNetwork, compact, compaction_plan, fold_batch_norm, mask_unwritten_batch_norms
from rap_jax.config import ModelConfig
from rap_jax.models import NETWORKS, Model, create_model
from rap_jax.models.layers.convolution import Implementation

SHAPES = {"lenet_mnist": (8, 12, 1), "lenet_mnist_bn": (8, 12, 1), "lenet_cifar": (24, 20, 3)}
CASES = [(name, 0, "cpu") for name in NETWORKS] + [(name, 1, "xla") for name in NETWORKS if name != "wide_resnet28"]


@functools.cache
def network(name: str, width: int = 2, implementation: Implementation = "xla") -> Model:
    """In the form that is quick to compile, unless told otherwise."""
    shape: Any = SHAPES.get(name, (32, 32, 3))
    return create_model(ModelConfig(name, width), input_shape=shape, num_classes=10, implementation=implementation)


@functools.cache
def shapes_of(model: Model) -> tuple[Any, Any]:
    return jax.eval_shape(model.init, jax.random.key(0))


def weights_for(model: Model, seed: int) -> tuple[Any, Any]:
    params, batch_stats = shapes_of(model)
    return random_weights(params, seed), random_weights(batch_stats, seed + 1)


def at(tree: Any, path: str) -> Any:
    return functools.reduce(lambda branch, key: branch[key], path.split("/"), tree)


def randomly_pruned(model: Model, seed: int) -> tuple[Any, Any, Any]:
    """Weights and masks: of each layer some filters are gone, of some of these the bias or shift is left, and of some
    layers a few input channels."""
    generator = np.random.default_rng(seed)
    params, batch_stats = weights_for(model, seed)
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
    dead = {group: generator.random(300) < 0.4 for group in model.wiring.groups.values()}
    for layer, group in model.wiring.groups.items():
        own = at(params, layer)
        width = own["kernel" if "kernel" in own else "scale"].shape[-1]
        gone = np.flatnonzero((dead[group][:width] | (generator.random(width) < 0.2))[1:]) + 1
        for leaf in own if generator.random() < 0.7 else ["kernel"]:
            if leaf in own:
                at(params, layer)[leaf][..., gone] = 0
                at(masks, layer)[leaf][..., gone] = False
    for reader, group in model.wiring.readers.items():
        unread = np.flatnonzero(generator.random(300)[: at(params, group)["kernel"].shape[-1]] < 0.15)
        unread = unread[unread > 0]
        for tree in (params, masks):
            kernel = at(tree, reader)["kernel"]
            channels = np.arange(kernel.shape[-2]) % at(params, group)["kernel"].shape[-1]
            kernel[..., np.isin(channels, unread), :] = 0
    return params, batch_stats, masks


def images_for(model: Model, num_images: int = 4) -> jax.Array:
    return jax.random.uniform(jax.random.key(5), (num_images, *model.input_shape))


def logits(model: Model, params: Any, batch_stats: Any) -> np.ndarray:
    apply = jax.jit(lambda params, stats, images: model.apply(params, stats, images, False)[0])
    return np.asarray(apply(params, batch_stats, images_for(model)))


def check_same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(expected).max()))


def of(small: CompactNetwork) -> tuple[Model, Any, Any]:
    return small.model, small.params, small.batch_stats


@pytest.mark.parametrize(("name", "seed", "implementation"), large_later(CASES))
def test_the_logits_stay(name: str, seed: int, implementation: Implementation) -> None:
    model = network(name, 2, implementation)
    params, batch_stats, masks = randomly_pruned(model, seed)
    before = jax.tree.map(np.copy, params)
    small = compact(model, params, batch_stats, masks)
    chex.assert_trees_all_equal(params, before)
    expected = jax.eval_shape(small.model.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(small.weights, expected)
    chex.assert_trees_all_equal_shapes(small.params, small.masks)
    assert sum(leaf.size for leaf in jax.tree.leaves(small.params)) < sum(leaf.size for leaf in jax.tree.leaves(params))
    expected_logits = logits(model, params, batch_stats)
    check_same(logits(*of(small)), expected_logits)
    again = compact(*of(small), small.masks)
    assert again.model.features == small.model.features
    folded = fold_batch_norm(*of(small), small.masks)
    check_same(logits(*of(folded)), expected_logits)
    chex.assert_trees_all_equal_shapes(folded.params, folded.masks)
    assert not jax.tree.leaves(folded.batch_stats)
    chex.assert_trees_all_equal_shapes(folded.params, jax.eval_shape(folded.model.init, jax.random.key(0))[0])


@pytest.mark.parametrize("name", large_later(NETWORKS))
def test_a_folded_network_can_be_compacted(name: str) -> None:
    model = network(name)
    params, batch_stats, _ = randomly_pruned(model, 2)
    small = compact(*of(fold_batch_norm(model, params, batch_stats)))
    check_same(logits(*of(small)), logits(model, params, batch_stats))
    features, before = dict(small.model.features), dict(compact(model, params, batch_stats).model.features)
    if name == "lenet_mnist_bn":  # fc1 has a bias then, which takes in a constant of conv2
        assert features.pop("conv2") < before.pop("conv2")
    assert features == before


def test_folding_keeps_the_logits_of_the_whole_network() -> None:
    for name in ("resnet18", "wide_resnet28"):
        model = network(name, width=1)
        params, batch_stats = weights_for(model, 4)
        check_same(logits(*of(fold_batch_norm(model, params, batch_stats))), logits(model, params, batch_stats))


@pytest.mark.parametrize("name", ["normed_net", "biased_net"])
def test_a_bias_before_batch_norm_is_folded_with_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add_normed_net(monkeypatch)
    model = create_model(ModelConfig(name, 1), input_shape=(6, 6, 1), num_classes=3)
    params, batch_stats = weights_for(model, 5)
    assert ("bias" in params["conv1"]) == (name == "biased_net")
    check_same(logits(*of(fold_batch_norm(model, params, batch_stats))), logits(model, params, batch_stats))


@pytest.mark.e2e
def test_a_folded_network_can_be_trained_on() -> None:
    folded = fold_batch_norm(model := network("wide_resnet28", width=1), *weights_for(model, 4))
    loss = lambda params: jnp.square(folded.model.apply(params, {}, images_for(model), True)[0]).sum()
    assert any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(loss)(folded.params)))


def test_a_constant_goes_into_the_bias_of_a_reader_that_sees_no_padding() -> None:
    model = network("lenet_mnist")
    params, batch_stats = weights_for(model, 0)
    params["conv2"]["kernel"][..., 3] = 0
    params["conv2"]["bias"][3] = 0.5
    params["fc1"]["kernel"][:, 7] = 0
    params["fc1"]["bias"][7] = 0.25
    small = compact(model, params, batch_stats)
    assert small.model.features == {"conv2": 7, "fc1": 127}
    check_same(logits(*of(small)), logits(model, params, batch_stats))
    moved = small.params["fc2"]["bias"] - params["fc2"]["bias"]
    np.testing.assert_allclose(moved, 0.25 * params["fc2"]["kernel"][7], rtol=1e-5)


def test_a_constant_that_padding_would_spoil_keeps_its_filter() -> None:
    model = network("lenet_mnist")
    params, _ = weights_for(model, 0)
    params["conv1"]["kernel"][..., 1] = 0
    params["conv1"]["bias"][1] = 0.5
    assert compact(model, params, {}).model.features == {}
    params["conv1"]["bias"][1] = -0.5  # the ReLU makes 0 of it
    assert compact(model, params, {}).model.features == {"conv1": 3}


def test_constants_go_through_layers_that_are_left_without_inputs() -> None:
    model = network("lenet_cifar")
    params, _ = weights_for(model, 0)
    params["conv1"]["kernel"][..., 2] = 0
    params["conv1"]["bias"][2] = 0.7
    params["conv2"]["kernel"][:, :, np.arange(12) != 2, 5] = 0  # filter 5 reads the constant alone
    params["fc1"]["kernel"][np.arange(len(params["fc1"]["kernel"])) % 32 != 5, 9] = 0  # and neuron 9 that
    small = compact(model, params, {})
    assert small.model.features == {"conv1": 11, "conv2": 31, "fc1": 239}
    check_same(logits(*of(small)), logits(model, params, {}))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("lenet_mnist", "conv2"),
        ("lenet_mnist_bn", "conv2"),
        ("vgg16", "conv5"),
        ("resnet18", "group2_block1/conv1"),
        ("wide_resnet28", "conv1"),
    ],
)
def test_a_layer_that_would_vanish_is_named(name: str, layers: str) -> None:
    model = network(name, width=1)
    params, batch_stats = weights_for(model, 0)
    group = model.wiring.groups[layers]
    for layer, one in model.wiring.groups.items():
        if one == group:
            for leaf in at(params, layer).values():
                leaf[...] = 0
    with pytest.raises(ValueError, match=f"Nothing would be left of .*{layers}.*: all"):
        compact(model, params, batch_stats)


@pytest.mark.parametrize("make", [compact, fold_batch_norm])
def test_weights_of_another_network_are_refused(make: Any) -> None:
    model = create_model(ModelConfig("lenet_mnist", 1), input_shape=(28, 28, 1), num_classes=10)
    wider = create_model(ModelConfig("lenet_mnist", 2), input_shape=(28, 28, 1), num_classes=10)
    params, batch_stats = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
    make(model, params, batch_stats)
    with pytest.raises(ValueError, match="model is <function .*; expected a Model, as create_model returns it"):
        make(lambda x: x, params, batch_stats)
    with pytest.raises(ValueError, match=r"shape of conv1/bias is None; expected \(2,\), as init of the model"):
        make(model, {}, {})
    with pytest.raises(ValueError, match=r"shape of conv1/bias is \(2,\); expected \(4,\)"):
        make(wider, params, batch_stats)
    with pytest.raises(ValueError, match="shape of conv1/mean is .*; expected None"):
        make(model, params, {"conv1": {"mean": np.zeros(2)}})


def test_wrong_masks_are_refused() -> None:
    model = network("lenet_mnist")
    params, _ = weights_for(model, 0)
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
    masks["fc1"]["kernel"][0, 0] = False
    with pytest.raises(ValueError, match="fc1/kernel has weights other than zero where the masks hold it at zero"):
        compact(model, params, {}, masks)
    masks["fc1"]["kernel"] = masks["fc1"]["kernel"][:3]
    with pytest.raises(ValueError, match=r"masks have fc1/kernel bool\[3, 128\]; expected bool\[48, 128\]"):
        compact(model, params, {}, masks)
    masks["fc1"]["kernel"] = np.ones((48, 128), np.int32)
    with pytest.raises(ValueError, match=r"masks have fc1/kernel int32\[48, 128\]; expected bool"):
        compact(model, params, {}, masks)
    masks["fc3"] = masks.pop("fc1")
    with pytest.raises(ValueError, match="masks lack .*fc1/bias.* and have .*fc3/bias.* besides"):
        compact(model, params, {}, masks)
    params["fc1"]["kernel"] = np.where(np.arange(128) == 3, np.nan, params["fc1"]["kernel"])
    with pytest.raises(ValueError, match="fc1/kernel has NaN or infinite numbers; expected finite ones"):
        compact(model, params, {})
    params, _ = weights_for(model, 0)
    with pytest.raises(ValueError, match="cannot be made again"):
        compact(dataclasses.replace(model, remake=None), params, {})


@pytest.mark.parametrize("name", nightly_but(["lenet_mnist"], ["lenet_mnist", "resnet18"]))
def test_an_attack_has_the_same_success(name: str) -> None:
    model = network(name, width=1)
    params, batch_stats, masks = randomly_pruned(model, 3)
    images = images_for(model, 16)
    # Without what all images have in common, so that they lie in more than one class and near the others.
    last = at(params, model.output_layer)
    last["bias"] -= np.asarray(model.apply(params, batch_stats, images, False)[0]).mean(0)
    small = compact(model, params, batch_stats, masks)
    labels = jnp.argmax(model.apply(params, batch_stats, images, False)[0], -1)

    def attacked(model: Model, params: Any, batch_stats: Any) -> np.ndarray:
        classify = lambda images: model.apply(params, batch_stats, images, False)[0]
        settings = {"threat_model": ThreatModel("linf", 0.3), "step_size": 0.05, "num_steps": 10}
        attack = jax.jit(lambda key: pgd(classify, images, labels, key=key, **settings))
        return np.asarray(attack(jax.random.key(1)).broken)

    found, expected = attacked(*of(small)), attacked(model, params, batch_stats)
    assert 0 < expected.mean()
    np.testing.assert_array_equal(found, expected)


def test_for_good_removes_no_less_than_for_training() -> None:
    for name in NETWORKS:
        model = network(name)
        params, batch_stats, masks = randomly_pruned(model, 6)
        training = compaction_plan(model.wiring, params, masks)
        good = compaction_plan(model.wiring, params, batch_stats=batch_stats)
        assert all(not np.any(good.kept[layer] & ~kept) for layer, kept in training.kept.items())


def test_a_norm_behind_a_sum_goes_with_the_last_filter_that_writes_its_channel() -> None:
    model = network("wide_resnet28", width=1)
    params, batch_stats = weights_for(model, 7)
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
    group = model.wiring.groups["group1_block1/norm1"]
    writers = [layer for layer, one in model.wiring.groups.items() if one == group and layer not in model.wiring.norms]
    for layer in writers:
        at(masks, layer)["kernel"][..., 3] = False
    at(masks, writers[0])["kernel"][..., 4] = False  # the other writers are left
    at(masks, writers[-1])["kernel"][..., 5] = False
    held = mask_unwritten_batch_norms(model.wiring, params, masks)
    assert np.flatnonzero(~at(held, "group1_block1/norm1")["shift"]).tolist() == [3]
    assert np.flatnonzero(~at(held, "group1_block1/norm1")["scale"]).tolist() == [3]
    assert at(held, "norm")["shift"].all() and at(held, "group1_block1/conv1")["shift"].all()
    cut = jax.tree.map(lambda leaf, keep: np.where(keep, leaf, 0), params, held)
    assert compaction_plan(model.wiring, cut, held).features[writers[0]] == 15
    small = compact(model, cut, batch_stats, held)
    assert small.model.features[writers[0]] == 15
    check_same(logits(*of(small)), logits(model, cut, batch_stats))
