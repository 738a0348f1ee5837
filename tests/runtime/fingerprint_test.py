"""By a fingerprint a network is told from another one, whatever the difference, and from itself never."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax._runtime.functions import fingerprint
from rap_jax.attacks.checks import LogitsFn

SHAPE = (4, 4, 1)


def network(seed: int = 0) -> LogitsFn:
    kernel = jax.random.normal(jax.random.key(seed), (16, 3))
    return lambda images: jnp.tanh(images.reshape(len(images), -1)) @ kernel


@jax.custom_vjp
def rounded(x: jax.Array) -> jax.Array:
    return jnp.round(8 * x) / 8


rounded.defvjp(lambda x: (rounded(x), None), lambda _, cotangent: (cotangent,))


def test_it_is_the_same_for_the_same_network() -> None:
    assert fingerprint(network(), SHAPE) == fingerprint(network(), SHAPE) == fingerprint(jax.jit(network()), SHAPE)


@pytest.mark.parametrize(
    "other",
    [
        network(1),
        jax.jit(network(1)),
        lambda images: 2 * network()(images),
        lambda images: network()(jax.lax.stop_gradient(images)),
    ],
)
def test_it_is_another_for_other_weights_another_program_and_another_gradient(other: LogitsFn) -> None:
    assert fingerprint(other, SHAPE) != fingerprint(network(), SHAPE)


def test_a_gradient_alone_makes_it_another() -> None:
    straight_through = lambda images: network()(rounded(images))
    without = lambda images: network()(jnp.round(8 * images) / 8)
    images = np.random.default_rng(0).random((2, *SHAPE), np.float32)
    np.testing.assert_array_equal(straight_through(images), without(images))
    assert fingerprint(straight_through, SHAPE) != fingerprint(without, SHAPE)


def test_a_randomised_network_has_one() -> None:
    noisy = lambda images, key: network()(images) + jax.random.normal(key, (len(images), 3))
    louder = lambda images, key: network()(images) + 2 * jax.random.normal(key, (len(images), 3))
    key = jax.random.key(0)
    assert fingerprint(noisy, SHAPE, key) == fingerprint(noisy, SHAPE, key) != fingerprint(louder, SHAPE, key)
