"""BatchNorm against its definition: what it returns, which statistics it keeps, and how gradients pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax.models.layers.batch_norm import BatchNorm, batch_moments

pytestmark = pytest.mark.usefixtures("optimised")

SCALE, SHIFT = np.float32([0.5, 2.0, -1.0]), np.float32([1.0, 0.0, 3.0])
MEAN, VAR = np.float32([5.0, 0.0, -1.0]), np.float32([4.0, 1.0, 0.25])
VARIABLES = {"params": {"scale": SCALE, "shift": SHIFT}, "batch_stats": {"mean": MEAN, "var": VAR}}


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (2, 3, 5, 3)])
def test_training_normalises_by_the_batch_and_keeps_unbiased_variances(shape: tuple[int, ...]) -> None:
    inputs = draw(shape)
    outputs, moved = BatchNorm(3).apply(VARIABLES, jnp.asarray(inputs), train=True, mutable=["batch_stats"])
    rows = inputs.reshape(-1, 3).astype(np.float64)
    expected = (inputs - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * SCALE + SHIFT
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.9 * MEAN + 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 * VAR + 0.1 * rows.var(0, ddof=1), rtol=1e-5)


def test_evaluation_uses_the_running_statistics() -> None:
    inputs = draw((2, 4, 4, 3))
    outputs = BatchNorm(3).apply(VARIABLES, jnp.asarray(inputs), train=False)
    np.testing.assert_allclose(outputs, (inputs - MEAN) / np.sqrt(VAR + 1e-5) * SCALE + SHIFT, atol=1e-5)


def test_the_epsilon_is_pytorchs() -> None:
    # With a variance of 1e-5 the epsilon is half of what is under the root.
    inputs = jnp.asarray(np.float32([[-1.0], [1.0]]) * np.float32(1e-5) ** 0.5)
    variables = {"params": {"scale": np.ones(1, "f"), "shift": np.zeros(1, "f")}, "batch_stats": {"mean": 0, "var": 0}}
    outputs, _ = BatchNorm(1).apply(variables, inputs, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(outputs[:, 0], [-(0.5**0.5), 0.5**0.5], rtol=1e-5)


def test_variance_survives_a_mean_far_from_zero() -> None:
    # E[x^2] - E[x]^2 in float32 would be off by more than 1 here.
    inputs = jnp.asarray(4096.0 + np.float32([[-1, -1, -1], [1, 1, 1]]))
    _, moved = BatchNorm(3).apply(VARIABLES, inputs, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 * VAR + 0.1 * 2.0, rtol=1e-6)


def test_one_number_per_channel_leaves_finite_statistics() -> None:
    _, moved = BatchNorm(3).apply(VARIABLES, jnp.ones((1, 3)), train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 * VAR, rtol=1e-6)


def test_gradients_pass_through_the_batch_statistics() -> None:
    inputs, weights = jnp.asarray(draw((6, 3))), jnp.asarray(draw((6, 3), seed=1))

    def loss(inputs: jax.Array) -> jax.Array:
        return (BatchNorm(3).apply(VARIABLES, inputs, train=True, mutable=["batch_stats"])[0] * weights).sum()

    gradient = jax.grad(loss)(inputs)
    # Shifting or stretching a channel of the batch changes nothing, so the gradient has no part in these directions.
    np.testing.assert_allclose(gradient.sum(0), 0, atol=1e-4)
    np.testing.assert_allclose((gradient * (inputs - inputs.mean(0, keepdims=True))).sum(0), 0, atol=1e-3)
    assert jnp.abs(gradient).max() > 0.1


def test_moments_have_the_derivatives_of_their_definition() -> None:
    plain = lambda x: (x.mean(0), ((x - x.mean(0, keepdims=True)) ** 2).mean(0))
    with jax.enable_x64(True):
        inputs, directions = jnp.asarray(draw((6, 3)), jnp.float64), jnp.asarray(draw((6, 3), seed=1), jnp.float64)
        loss = lambda moments: lambda x: (jnp.sin(moments(x)[0]) * jnp.log(moments(x)[1])).sum()
        second = lambda moments: jax.grad(lambda x: (jax.grad(loss(moments))(x) * directions).sum())(inputs)
        np.testing.assert_allclose(jax.grad(loss(batch_moments))(inputs), jax.grad(loss(plain))(inputs), rtol=1e-9)
        np.testing.assert_allclose(second(batch_moments), second(plain), rtol=1e-8, atol=1e-12)
