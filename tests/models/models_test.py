"""The networks as pure functions: sizes, results against plain operations, BatchNorm statistics, and errors."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from rap_jax.config import ModelConfig
from rap_jax.models import Implementation, Model, create_model, from_linen, in_dtype, num_params
from rap_jax.models.model import BatchStats, Params, Weights

pytestmark = pytest.mark.usefixtures("optimised")

MNIST: dict[str, Any] = {"input_shape": (28, 28, 1), "num_classes": 10}


@functools.cache
def lenet(implementation: Implementation = "auto", initializer: str = "default") -> Model:
    config = ModelConfig("lenet_mnist", width=2, initializer=initializer)
    return create_model(config, **MNIST, implementation=implementation)


@functools.cache
def lenet_init(initializer: str = "default") -> Callable[[jax.Array], tuple[Params, BatchStats]]:
    return jax.jit(lenet(initializer=initializer).init)


def lenet_params(initializer: str = "default", *, seed: int = 0) -> Params:
    return lenet_init(initializer)(jax.random.key(seed))[0]


def reference_logits(params: Params, images: jax.Array) -> jax.Array:
    """LeNet as the paper's table has it, in plain operations."""
    hidden = images
    for name in ("conv1", "conv2"):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        hidden = lax.conv_general_dilated(hidden, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        hidden = jax.nn.relu(hidden + bias[None, None, None])
        hidden = lax.reduce_window(hidden, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    hidden = hidden.reshape(len(images), -1)
    hidden = jax.nn.relu(hidden @ params["fc1"]["kernel"] + params["fc1"]["bias"][None])
    return hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"][None]


@pytest.mark.parametrize(("width", "count"), [(1, 13_514), (2, 52_506), (4, 206_954), (8, 821_706), (16, 3_274_634)])
def test_lenet_has_as_many_parameters_as_the_papers(width: int, count: int) -> None:
    model = create_model(ModelConfig(width=width), **MNIST)
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    assert num_params(params) == count
    assert batch_stats == {}


def test_params_are_plain_dicts_with_in_and_out_last() -> None:
    assert jax.tree.map(jnp.shape, lenet_params()) == {
        "conv1": {"kernel": (5, 5, 1, 4), "bias": (4,)},
        "conv2": {"kernel": (5, 5, 4, 8), "bias": (8,)},
        "fc1": {"kernel": (392, 128), "bias": (128,)},
        "fc2": {"kernel": (128, 10), "bias": (10,)},
    }
    assert type(lenet_params()) is dict and type(lenet_params()["conv1"]) is dict


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
@pytest.mark.parametrize("batch", [1, 5])
def test_lenet_and_its_gradients_are_those_of_plain_operations(implementation: Implementation, batch: int) -> None:
    random = np.random.default_rng(batch)
    images = jnp.asarray(random.uniform(size=(batch, 28, 28, 1)), jnp.float32)
    weights = jnp.asarray(random.normal(size=(batch, 10)), jnp.float32)

    def ours(params: Params, images: jax.Array) -> jax.Array:
        logits, batch_stats = lenet(implementation).apply(params, {}, images, train=True)
        assert batch_stats == {}
        return logits

    actual, expected = (
        jax.jit(lambda *arguments, f=f: (f(*arguments), jax.vjp(f, *arguments)[1](weights)))(lenet_params(), images)
        for f in (ours, reference_logits)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, expected)


def test_the_initializer_sets_the_convolutions_only() -> None:
    params = lenet_params("uniform")
    for name, fan_in in (("conv1", 25), ("conv2", 100), ("fc1", 392), ("fc2", 128)):
        kernel, bound = params[name]["kernel"], fan_in**-0.5
        if name.startswith("conv"):
            assert kernel.min() >= 0 and 0.9 < kernel.max() <= 1
        else:
            assert -bound <= kernel.min() < 0 and 0.9 * bound < kernel.max() <= bound
        assert 0.5 * bound < jnp.abs(params[name]["bias"]).max() <= bound


def test_init_depends_on_the_key_alone() -> None:
    jax.tree.map(np.testing.assert_array_equal, lenet_params(), lenet_params())
    assert not np.allclose(lenet_params()["fc2"]["kernel"], lenet_params(seed=1)["fc2"]["kernel"])


class WithBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        features = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=0.0)(images)
        return nn.Dense(3)(features.reshape(len(images), -1))


def test_batch_statistics_move_in_training_only() -> None:
    model = from_linen(WithBatchNorm(), input_shape=(2, 2, 1), num_classes=3, output_layer="Dense_0")
    params, before = model.init(jax.random.key(0))
    images = jnp.full((4, 2, 2, 1), 2.0) * jnp.arange(4).reshape(4, 1, 1, 1)
    _, same = model.apply(params, before, images, train=False)
    jax.tree.map(np.testing.assert_array_equal, same, before)
    _, after = model.apply(params, before, images, train=True)
    np.testing.assert_allclose(after["BatchNorm_0"]["mean"], [0.1 * 3.0], rtol=1e-6)
    np.testing.assert_allclose(after["BatchNorm_0"]["var"], [0.9 + 0.1 * 5.0], rtol=1e-6)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="model name is 'alexnet'; expected one of lenet_mnist"):
        create_model(ModelConfig("alexnet"), **MNIST)
    with pytest.raises(ValueError, match="initializer is 'he'; expected one of default"):
        create_model(ModelConfig(initializer="he"), **MNIST)
    unknown: Any = "fast"
    with pytest.raises(ValueError, match="implementation is 'fast'; expected one of auto, cpu, xla"):
        create_model(ModelConfig(), **MNIST, implementation=unknown)


@pytest.mark.parametrize("shape", [(28, 28), (0, 28, 1)])
def test_impossible_input_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match="input_shape is"):
        create_model(ModelConfig(), input_shape=shape, num_classes=10)


def test_a_network_by_name_alone_and_a_width_in_words_are_refused() -> None:
    with pytest.raises(ValueError, match="config is 'lenet_mnist'; expected a ModelConfig"):
        create_model("lenet_mnist", input_shape=(28, 28, 1), num_classes=10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width is '4'; expected a whole number of 1 or more"):
        ModelConfig(width="4")  # type: ignore[arg-type]


def test_images_in_place_of_weights_are_refused() -> None:
    weights, images = Weights(lenet_params(), {}), jnp.zeros((2, 28, 28, 1))
    np.testing.assert_array_equal(lenet().logits(weights, images), lenet().apply(*weights, images, False)[0])
    with pytest.raises(ValueError, match=r"weights is .*; expected Weights\(params, batch_stats\)"):
        lenet().logits(images, weights)  # type: ignore[arg-type]


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes is 1; expected 2 or more"):
        create_model(ModelConfig(), input_shape=(28, 28, 1), num_classes=1)


@pytest.mark.parametrize("shape", [(28, 28, 1), (2, 28, 28), (2, 32, 32, 3)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images.shape is .*expected \[N, 28, 28, 1\]"):
        lenet().apply(lenet_params(), {}, jnp.zeros(shape), train=False)


def test_a_model_can_be_a_static_argument() -> None:
    model = create_model(ModelConfig(width=1), input_shape=(8, 8, 1), num_classes=10, features={"conv1": 1})
    params, batch_stats = model.init(jax.random.key(0))
    apply = jax.jit(lambda model, params, images: model.apply(params, {}, images, False)[0], static_argnums=0)
    assert apply(model, params, jnp.zeros((2, 8, 8, 1))).shape == (2, 10) and not batch_stats


def test_logits_are_those_of_evaluation_mode() -> None:
    model = from_linen(WithBatchNorm(), input_shape=(2, 2, 1), num_classes=3, output_layer="Dense_0")
    weights = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (4, 2, 2, 1))
    np.testing.assert_array_equal(model.logits(weights, images), model.apply(*weights, images, False)[0])
    assert not np.allclose(model.logits(weights, images), model.apply(*weights, images, True)[0])


def test_a_model_made_again_changes_in_what_is_named_alone() -> None:
    model = create_model(ModelConfig(width=1), input_shape=(8, 8, 1), num_classes=10, features={"conv1": 1})
    for changes in ({"input_shape": (12, 12, 1)}, {"config": ModelConfig(width=2)}, {"features": {"fc1": 3}}):
        given: dict[str, Any] = {"config": ModelConfig(width=1), "input_shape": (8, 8, 1), "features": {"conv1": 1}}
        expected = create_model(**given | changes, num_classes=10)
        found = model.replace(**changes)
        shapes = [jax.eval_shape(made.init, jax.random.key(0)) for made in (found, expected)]
        assert shapes[0] == shapes[1] and found.input_shape == expected.input_shape
    narrow = in_dtype(model, "bfloat16").replace(features={})
    weights, images = narrow.init(jax.random.key(0)), jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
    expected_logits = in_dtype(model.replace(features={}), "bfloat16").logits(weights, images)
    np.testing.assert_array_equal(narrow.logits(weights, images), expected_logits)
    assert not np.array_equal(expected_logits, model.replace(features={}).logits(weights, images))
    with pytest.raises(ValueError, match="cannot be made again"):
        dataclasses.replace(model, remake=None).replace(features={})
