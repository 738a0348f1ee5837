"""2x2 max pooling: against NumPy, and the rules for odd sizes, ties and NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_networks
import pytest
from jax import lax

from rap_jax.models.layers.pool import max_pool

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (1, 7, 5, 2), (3, 2, 3, 1)])
def test_values_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(max_pool(jnp.asarray(images)), numpy_networks.max_pool(images))


@pytest.mark.parametrize("seed", range(3))
def test_every_pattern_of_ties_gives_the_gradient_of_reduce_window(seed: int) -> None:
    # Of pixels from {0, 1} most windows tie, in all patterns; `reduce_window` chooses the first in row order.
    generator = np.random.default_rng(seed)
    images = jnp.asarray(generator.integers(0, 2, (8, 9, 12, 2)), jnp.float32)
    weights = jnp.asarray(generator.integers(-9, 10, (8, 4, 6, 2)), jnp.float32)

    def reference(images: jax.Array) -> jax.Array:
        return lax.reduce_window(images, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    actual, expected = (jax.vjp(jax.jit(f), images)[1](weights)[0] for f in (max_pool, reference))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("place", range(4))
def test_nan_is_not_lost(place: int) -> None:
    window = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert jnp.isnan(max_pool(window)).all()
