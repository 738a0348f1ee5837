"""FGSM by its closed form on a linear loss, and by its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smooth_net import raise_loss

from rap_jax.attacks import fgsm
from rap_jax.attacks.norms import NORMS

SHAPE = (6, 5, 4, 1)
WEIGHTS = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)  # each example has its own
WEIGHTS[0, 0] = 0  # pixels that the loss does not see


@pytest.fixture(name="images")
def make_images() -> jax.Array:
    return jnp.clip(1.4 * jax.random.uniform(jax.random.key(0), SHAPE) - 0.2, 0, 1)  # some on the border of the box


def linear_loss(images: jax.Array) -> jax.Array:
    return jnp.sum(images * WEIGHTS, (1, 2, 3))


def bent_loss(images: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(4 * images), (1, 2, 3))


def test_is_the_worst_image_of_a_linear_loss(images: jax.Array) -> None:
    """Inside an L-infinity ball and the box every pixel goes as far as it can towards the sign of its weight."""
    found = raise_loss(fgsm, None, linear_loss, images, epsilon=0.1)
    clean = np.asarray(images)
    corner = np.where(WEIGHTS > 0, np.minimum(clean + 0.1, 1), np.maximum(clean - 0.1, 0))
    np.testing.assert_allclose(found, np.where(WEIGHTS == 0, clean, corner), atol=1e-6)


def test_l2_follows_the_gradient(images: jax.Array) -> None:
    inside = 0.3 + 0.4 * images
    found = raise_loss(fgsm, None, linear_loss, inside, epsilon=0.2, norm="l2")
    lengths = np.sqrt((WEIGHTS**2).sum((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(found - inside, 0.2 * WEIGHTS / lengths, atol=1e-6)


def test_takes_the_gradient_at_the_image(images: jax.Array) -> None:
    """The slope of sin(4x) changes its sign at x = pi / 8, which an image a step further would not see."""
    found = raise_loss(fgsm, None, bent_loss, images, epsilon=0.1)
    expected = np.clip(np.asarray(images) + 0.1 * np.sign(np.cos(4 * np.asarray(images))), 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_stays_in_ball_and_box(images: jax.Array, norm: str) -> None:
    # The radius may be traced.
    attack = jax.jit(lambda epsilon: raise_loss(fgsm, None, bent_loss, images, epsilon=epsilon, norm=norm))
    for epsilon in (0.0, 0.1, 0.7):
        found = attack(epsilon)
        assert found.shape == images.shape and found.dtype == images.dtype
        assert 0 <= found.min() and found.max() <= 1
        assert (NORMS[norm].size(found - images) <= epsilon + 1e-6).all()
    np.testing.assert_array_equal(attack(0.0), images)


@pytest.mark.parametrize("norm", NORMS)
def test_examples_are_independent(images: jax.Array, norm: str) -> None:
    together = raise_loss(fgsm, None, bent_loss, images, epsilon=0.3, norm=norm)
    for i in range(len(images)):
        alone = raise_loss(fgsm, None, bent_loss, images[i : i + 1], epsilon=0.3, norm=norm)
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-6)


def test_no_gradient_flows_through(images: jax.Array) -> None:
    total = lambda x: raise_loss(fgsm, None, bent_loss, x, epsilon=0.1).sum()
    np.testing.assert_array_equal(jax.grad(total)(images), jnp.zeros_like(images))


def test_refuses(images: jax.Array) -> None:
    with pytest.raises(ValueError, match="norm is 'l1'; expected one of linf, l2"):
        raise_loss(fgsm, None, bent_loss, images, epsilon=0.1, norm="l1")
    with pytest.raises(ValueError, match="uint8.*; expected floating point"):
        raise_loss(fgsm, None, bent_loss, jnp.zeros(SHAPE, jnp.uint8), epsilon=0.1)
