"""Captured arrays as an argument."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax._runtime.functions import hoist_closure
from rap_jax.attacks.checks import in_float32

pytestmark = pytest.mark.usefixtures("optimised")

WEIGHT, BIAS = jnp.arange(6.0).reshape(3, 2), jnp.ones(2)


def affine(x: jax.Array) -> jax.Array:
    return x @ WEIGHT + BIAS[None]


@jax.custom_vjp
def doubled(x: jax.Array) -> jax.Array:
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (7 * g,))


@pytest.mark.parametrize("function", [affine, jax.jit(affine), in_float32(affine), in_float32(jax.jit(affine))])
def test_the_arrays_are_those_that_are_given(function: jax.stages.Wrapped) -> None:
    lifted, captured = hoist_closure(function, jax.ShapeDtypeStruct((4, 3), jnp.float32))
    assert [found.shape for found in captured] == [(3, 2), (2,)]
    for rows in (4, 5):  # any number of them
        x = jnp.ones((rows, 3))
        np.testing.assert_allclose(lifted(captured, x), function(x))
        np.testing.assert_allclose(jax.jit(lifted)([10 * WEIGHT, 0 * BIAS], x), 10 * x @ WEIGHT)


def test_gradients_and_maps_go_through() -> None:
    lifted, captured = hoist_closure(lambda x: doubled(x @ WEIGHT), jax.ShapeDtypeStruct((1, 3), jnp.float32))
    x = jnp.ones((4, 3))
    gradient = jax.grad(lambda x: lifted(captured, x).sum())(x)
    np.testing.assert_allclose(gradient, jnp.broadcast_to(7 * WEIGHT.sum(1)[None], (4, 3)))
    np.testing.assert_allclose(jax.vmap(lambda x: lifted(captured, x))(x[None])[0], 2 * x @ WEIGHT)


def test_further_arguments() -> None:
    noisy = lambda x, key: x @ WEIGHT + jax.random.normal(key, (len(x), 2))
    x, key = jnp.ones((2, 3)), jax.random.key(3)
    lifted, captured = hoist_closure(noisy, x, key)
    np.testing.assert_allclose(lifted(captured, x, key), noisy(x, key), rtol=1e-6)


def test_a_decorated_function_keeps_its_decorator() -> None:
    @functools.wraps(affine)
    def normalised(x: jax.Array) -> jax.Array:
        return affine(2 * x - 1)

    x = jnp.full((4, 3), 0.75)
    lifted, captured = hoist_closure(normalised, x)
    np.testing.assert_allclose(lifted(captured, x), affine(2 * x - 1))
