"""Bounds and moments of every initialisation, from PyTorch's formulas written out here."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax.config import ModelConfig
from rap_jax.models import create_model
from rap_jax.models.layers.initializers import (
    INITIALIZERS,
    Initializer,
    bias_initializer,
    hinge_filters,
    kernel_initializer,
)
from rap_jax.models.layers.linear import Dense

pytestmark = pytest.mark.usefixtures("optimised")

# A convolution kernel of 25,000 numbers: fan_in 5*5*20, fan_out 5*5*50.
SHAPE, FAN_IN, FAN_OUT = (5, 5, 20, 50), 500, 1250


def draw(init: Initializer, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    array = init(jax.random.key(seed), shape)
    assert array.shape == shape and array.dtype == jnp.float32
    return np.asarray(array, np.float64)


def check_uniform(sample: np.ndarray, low: float, high: float) -> None:
    assert low <= sample.min() and sample.max() <= high
    width = high - low
    assert sample.min() < low + 0.01 * width and sample.max() > high - 0.01 * width
    counts, _ = np.histogram(sample, bins=10, range=(low, high))
    np.testing.assert_allclose(counts / sample.size, 0.1, rtol=0.15)


def check_normal(sample: np.ndarray, std: float) -> None:
    np.testing.assert_allclose(sample.mean(), 0, atol=0.03 * std)
    np.testing.assert_allclose(sample.std(), std, rtol=0.03)
    # Not truncated: 4.55 % of a normal variable lie beyond two standard deviations, 0.27 % beyond three.
    np.testing.assert_allclose(np.mean(np.abs(sample) > 2 * std), 0.0455, rtol=0.15)
    np.testing.assert_allclose(np.mean(np.abs(sample) > 3 * std), 0.0027, rtol=0.6)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("pytorch", -np.sqrt(1 / FAN_IN), np.sqrt(1 / FAN_IN)),
        ("xavier_uniform", -np.sqrt(6 / (FAN_IN + FAN_OUT)), np.sqrt(6 / (FAN_IN + FAN_OUT))),
        ("kaiming_uniform", -np.sqrt(6 / FAN_IN), np.sqrt(6 / FAN_IN)),
        ("uniform", 0.0, 1.0),
    ],
)
def test_uniform_initializers(name: str, low: float, high: float) -> None:
    check_uniform(draw(kernel_initializer(name)), low, high)


@pytest.mark.parametrize(
    ("name", "std"),
    [("normal", 1.0), ("xavier_normal", np.sqrt(2 / (FAN_IN + FAN_OUT))), ("kaiming_normal", np.sqrt(2 / FAN_IN))],
)
def test_normal_initializers(name: str, std: float) -> None:
    check_normal(draw(kernel_initializer(name)), std)


def test_orthogonal_has_orthonormal_columns_or_rows() -> None:
    tall = draw(kernel_initializer("orthogonal")).reshape(FAN_IN, 50)
    np.testing.assert_allclose(tall.T @ tall, np.eye(50), atol=1e-5)
    broad = draw(kernel_initializer("orthogonal"), (3, 3, 1, 16)).reshape(9, 16)
    np.testing.assert_allclose(broad @ broad.T, np.eye(9), atol=1e-5)


def test_dense_kernels_and_biases_start_as_in_pytorch() -> None:
    bound = 400**-0.5
    kernel = Dense(100).init(jax.random.key(0), jnp.zeros((1, 400)))["params"]["kernel"]
    check_uniform(np.asarray(kernel, np.float64), -bound, bound)
    check_uniform(draw(bias_initializer(400), (20_000,)), -bound, bound)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_the_key_decides(name: str) -> None:
    init = kernel_initializer(name)
    np.testing.assert_array_equal(draw(init), draw(init))
    assert not np.array_equal(draw(init), draw(init, seed=1))


@pytest.mark.parametrize("name", ["kaiming_normal", "orthogonal"])
def test_default_is_what_the_caller_says(name: str) -> None:
    expected, other = draw(kernel_initializer(name)), draw(kernel_initializer("normal"))
    np.testing.assert_array_equal(draw(kernel_initializer("default", default=name)), expected)
    np.testing.assert_array_equal(draw(kernel_initializer("normal", default=name)), other)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="initializer is 'he'; expected one of default, pytorch, .*orthogonal"):
        kernel_initializer("he")


def test_two_hinges_at_a_pixel_cut_its_ends() -> None:
    kernel, bias = hinge_filters((5, 5, 1, 2))
    pixel = np.linspace(0, 1, 7, dtype=np.float32)
    low, high = (np.maximum(kernel[2, 2, 0, i] * pixel + bias[i], 0) for i in range(2))
    np.testing.assert_allclose(2 * (low - high), np.clip(3 * pixel - 1, 0, 1), atol=1e-6)
    assert np.count_nonzero(kernel) == 2


@pytest.mark.parametrize("shape", [(5, 5, 1, 2), (5, 5, 1, 8), (5, 5, 3, 12), (3, 3, 1, 32), (1, 1, 2, 5)])
def test_hinges_look_at_one_pixel_each(shape: tuple[int, int, int, int]) -> None:
    kernel, bias = hinge_filters(shape)
    np.testing.assert_array_equal(np.count_nonzero(kernel, (0, 1, 2)), 1)
    np.testing.assert_allclose(-bias / kernel.max((0, 1, 2)), np.resize([1 / 3, 2 / 3], shape[3]), atol=1e-6)
    places = [tuple(np.argwhere(kernel[..., i])[0]) for i in range(0, shape[3], 2)]
    assert len(set(places)) == min(len(places), shape[0] * shape[1] * shape[2])
    if shape == (5, 5, 1, 8):
        assert {(int(row) % 2, int(column) % 2) for row, column, _ in places} == {(0, 0), (1, 1), (1, 0), (0, 1)}


def test_a_network_starts_by_hinges() -> None:
    given: dict[str, Any] = {"input_shape": (28, 28, 1), "num_classes": 10}
    hinge, plain = (create_model(ModelConfig("lenet_mnist", 1, name), **given) for name in ("hinge", "default"))
    found, other = (model.init(jax.random.key(0)).params for model in (hinge, plain))
    np.testing.assert_array_equal(found["conv1"]["kernel"], hinge_filters((5, 5, 1, 2))[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(found, other)
    chex.assert_trees_all_equal(*({name: tree[name] for name in ("conv2", "fc1", "fc2")} for tree in (found, other)))
    with pytest.raises(ValueError, match="initializer is 'hinge'; expected another for resnet18"):
        create_model(ModelConfig("resnet18", 1, "hinge"), input_shape=(32, 32, 3), num_classes=10)
