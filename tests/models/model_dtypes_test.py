"""Every network in every float, with any number of images, under 64 bits and strict promotion: right, or refused."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_run import NETWORKS
from tiers import large_later

from rap_jax.config import ModelConfig
from rap_jax.models import Implementation, Model, create_model

FLOATS = ("bfloat16", "float16", "float32", "float64")


@contextlib.contextmanager
def strict_x64() -> Iterator[None]:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


def model_of(name: str, implementation: Implementation) -> Model:
    shape = (8, 12, 1) if name.startswith("lenet_mnist") else NETWORKS[name]  # even sides, for the form of the CPU
    return create_model(ModelConfig(name, 1), input_shape=shape, num_classes=10, implementation=implementation)


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
@pytest.mark.parametrize("name", large_later(NETWORKS))
def test_logits_are_in_the_dtype_of_the_params(name: str, implementation: Implementation) -> None:
    model = model_of(name, implementation)
    with strict_x64():
        params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves((params, batch_stats))} == {np.dtype(np.float32)}
        for given, computed in (("float32", "bfloat16"), *((dtype, "float32") for dtype in FLOATS)):
            images = jax.ShapeDtypeStruct((7, *model.input_shape), jnp.dtype(given))
            cast = jax.tree.map(lambda leaf, to=computed: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(to)), params)
            logits = jax.eval_shape(lambda p, x: model.apply(p, ones_like(batch_stats), x, False)[0], cast, images)
            assert (logits.shape, logits.dtype) == ((7, 10), computed)


def ones_like(shapes: Any) -> Any:
    """Ones of these shapes."""
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)


def test_weights_are_drawn_alike_with_64_bits() -> None:
    model = model_of("lenet_mnist", "xla")
    expected = jax.jit(model.init)(jax.random.key(3))[0]
    with jax.enable_x64(True):
        drawn = jax.jit(model.init)(jax.random.key(3))[0]
    assert jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), drawn, expected))


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
@pytest.mark.parametrize("name", ["lenet_mnist", "lenet_mnist_bn", "lenet_cifar"])
def test_no_images_have_no_logits(name: str, implementation: Implementation) -> None:
    model = model_of(name, implementation)
    params, batch_stats = ones_like(jax.eval_shape(model.init, jax.random.key(0)))
    none = jnp.zeros((0, *model.input_shape))
    logits_fn = lambda x: model.apply(params, batch_stats, x, False)[0]
    gradient_fn = jax.grad(lambda x: logits_fn(x).sum())
    assert jax.jit(logits_fn)(none).shape == (0, 10) and jax.jit(gradient_fn)(none).shape == none.shape
    with pytest.raises(ValueError, match="number of images is 0; expected 1 or more"):
        model.apply(params, batch_stats, none, True)


def test_bytes_are_refused() -> None:
    """In the form of the CPU they were taken for numbers up to 255."""
    model = model_of("lenet_mnist", "cpu")
    params, batch_stats = ones_like(jax.eval_shape(model.init, jax.random.key(0)))
    with pytest.raises(ValueError, match="dtype of images is 'uint8'; expected floats in .*bytes / 255"):
        model.apply(params, batch_stats, jnp.ones((1, *model.input_shape), jnp.uint8), False)
