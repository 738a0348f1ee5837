"""The LeNet for MNIST with BatchNorm: folded it is a `lenet_mnist`, pruned or not, with the same logits."""

import functools
from typing import Any

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_networks import random_weights

from rap_jax.compaction import compact, fold_batch_norm
from rap_jax.compaction.cut import masks_of_cut
from rap_jax.config import ModelConfig
from rap_jax.models import FOLDED_AS, Implementation, Model, create_model, num_params
from rap_jax.pruning.masks import apply_masks
from rap_jax.pruning.specs import Structure, specs_from_patterns

SHAPE = (8, 12, 1)


@functools.cache
def lenet(name: str, implementation: Implementation = "xla", features: tuple[tuple[str, int], ...] = ()) -> Model:
    given: Any = {"implementation": implementation, "features": dict(features)}
    return create_model(ModelConfig(name, 2), input_shape=SHAPE, num_classes=10, **given)


@functools.cache
def logits_fn(model: Model) -> Any:
    return jax.jit(model.logits)


def weights_with_negative_scales(seed: int) -> tuple[Any, Any]:
    """Random weights and statistics; about half of the scales are negative."""
    shapes = jax.eval_shape(lenet("lenet_mnist_bn").init, jax.random.key(0))
    params, batch_stats = (random_weights(tree, seed + i) for i, tree in enumerate(shapes))
    generator = np.random.default_rng(seed)
    for layer in ("conv1", "conv2", "fc1"):
        params[layer]["scale"] *= generator.choice(np.float32([-1, 1]), len(params[layer]["scale"]))
    return params, batch_stats


def images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((4, *SHAPE), np.float32)


def check_same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(expected).max()))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**30), implementation=st.sampled_from(["cpu", "xla"]))
def test_a_folded_network_is_a_lenet_mnist(seed: int, implementation: Implementation) -> None:
    model = lenet("lenet_mnist_bn", implementation)
    params, batch_stats = weights_with_negative_scales(seed)
    folded = fold_batch_norm(model, params, batch_stats)
    plain = lenet(FOLDED_AS["lenet_mnist_bn"], implementation)
    chex.assert_trees_all_equal_shapes_and_dtypes(folded.weights, jax.eval_shape(plain.init, jax.random.key(0)))
    check_same(logits_fn(plain)(folded.weights, images(seed)), logits_fn(model)((params, batch_stats), images(seed)))


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
def test_a_folded_network_is_the_program_of_a_lenet_mnist(implementation: Implementation) -> None:
    folded, plain = lenet("lenet_mnist_bn", implementation).replace(folded=True), lenet("lenet_mnist", implementation)
    for train in (False, True):
        programs = [
            str(
                jax.make_jaxpr(lambda weights, x, m=m, t=train: m.apply(*weights, x, t)[0])(
                    jax.eval_shape(plain.init, jax.random.key(0)), images(0)
                )
            )
            for m in (folded, plain)
        ]
        assert programs[0] == programs[1]


@pytest.mark.parametrize("structure", ["filter", "bn_filter"])
def test_a_pruned_network_is_compacted_and_folded(structure: Structure) -> None:
    model = lenet("lenet_mnist_bn")
    params, batch_stats = weights_with_negative_scales(3)
    patterns = (("conv*", 0.5), ("fc1", 0.75))
    specs = specs_from_patterns(patterns, params, structure=structure, output_layer=model.output_layer)
    masks = masks_of_cut(specs, model, params)
    cut = apply_masks(masks, params)
    small = compact(model, cut, batch_stats, jax.device_get(masks))
    small = fold_batch_norm(*small[:3], small.masks)
    assert small.model.features == {"conv1": 2, "conv2": 4, "fc1": 32}
    assert jax.tree.all(jax.tree.map(np.all, small.masks))
    # 5x5 kernels, 2x3 places after two poolings, and biases.
    assert num_params(small.params) == (25 * 2 + 2) + (25 * 2 * 4 + 4) + (2 * 3 * 4 * 32 + 32) + (32 * 10 + 10)
    plain = lenet("lenet_mnist", "xla", tuple(small.model.features.items()))
    expected = logits_fn(model)((cut, batch_stats), images(3))
    assert np.abs(expected - logits_fn(model)((params, batch_stats), images(3))).max() > 0.1
    check_same(logits_fn(plain)(small.weights, images(3)), expected)


def test_irregular_masks_are_those_of_the_folded_network() -> None:
    model = lenet("lenet_mnist_bn")
    params, batch_stats = weights_with_negative_scales(5)
    specs = specs_from_patterns((("*", 0.6),), params, structure="irregular", output_layer=model.output_layer)
    masks = jax.device_get(masks_of_cut(specs, model, params))
    folded = fold_batch_norm(model, apply_masks(masks, params), batch_stats, masks)
    chex.assert_trees_all_equal_structs(folded.params, folded.masks)
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        np.testing.assert_array_equal(folded.params[layer]["kernel"] != 0, folded.masks[layer]["kernel"])
