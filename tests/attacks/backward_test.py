"""The leaky backward pass: the same values, another gradient at ReLUs that are off, and nothing else changed."""

from collections.abc import Callable

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from tiers import large_later

from rap_jax.attacks.backward import leaky_backward
from rap_jax.config import ModelConfig
from rap_jax.models import create_model

X = jnp.asarray(np.float32([[-2.0, -0.5, 0.5, 2.0], [1.0, -1.0, 3.0, -3.0]]))
RELUS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "jax.nn": jax.nn.relu,
    "nnx": flax.nnx.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "maximum, turned": lambda x: jnp.maximum(0.0, x),
    "under jit": jax.jit(jax.nn.relu),
    "under checkpoint": jax.checkpoint(jax.nn.relu),
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS.keys())
def test_every_relu_leaks(relu: Callable[[jax.Array], jax.Array]) -> None:
    function = lambda x: jnp.sin(relu(2 * x))
    changed = leaky_backward(function, 0.25)
    np.testing.assert_array_equal(changed(X), function(X))
    gradient = jax.grad(lambda x: changed(x).sum())(X)
    expected = 2 * jnp.cos(jnp.maximum(2 * X, 0)) * jnp.where(X > 0, 1.0, 0.25)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(changed)(X), jax.jit(function)(X))


def test_a_slope_of_1_goes_straight_through() -> None:
    gradient = jax.grad(lambda x: leaky_backward(jax.nn.relu, 1)(x).sum())(X)
    np.testing.assert_array_equal(gradient, jnp.ones_like(X))


def test_a_slope_of_0_is_the_function_itself() -> None:
    assert leaky_backward(jax.nn.relu, 0.0) is jax.nn.relu


@pytest.mark.parametrize("network", large_later(["lenet_mnist", "resnet18"]))
@pytest.mark.parametrize("implementation", ["cpu", "xla"])
def test_a_network_is_that_with_leaky_relus(network: str, implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (28, 28, 1) if network == "lenet_mnist" else (32, 32, 3)
    model = create_model(ModelConfig(network, 1), input_shape=shape, num_classes=10, implementation=implementation)
    weights = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, *shape))
    changed = leaky_backward(lambda x: model.logits(weights, x), 0.1)
    np.testing.assert_array_equal(changed(images), model.logits(weights, images))
    found = jax.grad(lambda x: changed(x)[:, 0].sum())(images)
    plain = jax.grad(lambda x: model.logits(weights, x)[:, 0].sum())(images)

    @jax.custom_jvp
    def leaky(x: jax.Array) -> jax.Array:
        return jnp.maximum(x, 0)

    leaky.defjvps(lambda tangent, _, x: jnp.where(x > 0, tangent, 0.1 * tangent))
    monkeypatch.setattr(flax.linen, "relu", leaky)
    expected = jax.grad(lambda x: model.logits(weights, x)[:, 0].sum())(images)
    size = float(jnp.abs(plain).max())
    np.testing.assert_allclose(found / size, expected / size, atol=1e-5)
    assert jnp.abs(found - plain).max() > 0.05 * size


def test_arguments_and_results_may_be_trees() -> None:
    changed = leaky_backward(lambda tree, scale: {"a": jax.nn.relu(tree["x"]) * scale, "b": scale}, 0.5)
    found = changed({"x": X}, jnp.float32(3))
    np.testing.assert_array_equal(found["a"], jnp.maximum(X, 0) * 3)
    assert float(found["b"]) == 3


def test_what_cannot_be_changed_is_refused() -> None:
    with pytest.raises(ValueError, match="ReLU inside of a scan, whose backward pass cannot be changed"):
        leaky_backward(lambda x: lax.scan(lambda y, _: (jax.nn.relu(y), None), x, length=3)[0], 0.1)(X)
    with pytest.raises(ValueError, match="has no ReLU"):
        leaky_backward(jnp.tanh, 0.1)(X)
    for slope in (-0.1, 1.5, float("nan"), "0.1", None):
        with pytest.raises(ValueError, match=r"slope is .*; expected a number in \[0, 1\]"):
            leaky_backward(jax.nn.relu, slope)  # type: ignore[arg-type]


def test_a_derivative_of_its_own_is_kept() -> None:
    ste = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
    ste.defjvps(lambda tangent, _, x: 5 * tangent)
    with pytest.raises(ValueError, match="ReLU inside of a custom_jvp_call"):
        leaky_backward(lambda x: ste(x) + jax.nn.relu(x), 0.1)(X)
    with pytest.raises(ValueError, match="function is 3; expected a function of arrays"):
        leaky_backward(3, 0.1)  # type: ignore[arg-type]


def test_derivatives_of_other_functions_stay() -> None:
    @jax.custom_vjp
    def straight(x: jax.Array) -> jax.Array:
        return jnp.round(x)

    straight.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    changed = leaky_backward(lambda x: straight(jax.nn.relu(x)), 0.5)
    np.testing.assert_array_equal(jax.grad(lambda x: changed(x).sum())(X), jnp.where(X > 0, 1.0, 0.5))
