"""PGD with momentum against an independent NumPy version, and by its properties."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from smooth_net import raise_loss

from rap_jax.attacks import ThreatModel, momentum_pgd, pgd, pgd_restarts
from rap_jax.attacks.norms import NORMS
from rap_jax.attacks.pgd import momentum

SHAPE = (6, 5, 4, 1)
WEIGHTS = np.linspace(-2, 2, 20, dtype=np.float32).reshape(1, 5, 4, 1)
SETTINGS: dict[str, Any] = {"epsilon": 0.3, "step_size": 0.1, "num_steps": 7}


@pytest.fixture(name="images")
def make_images() -> jax.Array:
    return jnp.clip(1.4 * jax.random.uniform(jax.random.key(0), SHAPE) - 0.2, 0, 1)  # some on the border of the box


def wavy_loss(images: jax.Array) -> jax.Array:
    """A loss whose gradient changes its sign and its size along the way."""
    return jnp.sum(jnp.sin(9 * images * WEIGHTS) + images * images * WEIGHTS, (1, 2, 3))


def numpy_gradient(image: np.ndarray) -> np.ndarray:
    return 9 * WEIGHTS[0] * np.cos(9 * image * WEIGHTS[0]) + 2 * image * WEIGHTS[0]


def numpy_momentum_pgd(images: np.ndarray, norm: str, decay: float) -> np.ndarray:
    """Algorithm 1 of the paper, one example at a time, in float64."""
    found = []
    for clean in images.astype(np.float64):
        x, g = clean.copy(), np.zeros_like(clean)
        for _ in range(SETTINGS["num_steps"]):
            gradient = numpy_gradient(x)
            g = decay * g + gradient / np.abs(gradient).sum()
            x = x + SETTINGS["step_size"] * (np.sign(g) if norm == "linf" else g / np.linalg.norm(g))
            delta = x - clean
            if norm == "linf":
                delta = np.minimum(np.maximum(delta, -SETTINGS["epsilon"]), SETTINGS["epsilon"])
            else:
                delta = delta * min(1, SETTINGS["epsilon"] / np.linalg.norm(delta))
            x = np.minimum(np.maximum(clean + delta, 0), 1)
        found.append(x)
    return np.array(found)


@pytest.mark.parametrize("decay", [0.5, 1.0])
@pytest.mark.parametrize("norm", NORMS)
def test_equals_numpy(images: jax.Array, norm: str, decay: float) -> None:
    found = raise_loss(momentum_pgd, jax.random.key(0), wavy_loss, images, decay=decay, norm=norm, **SETTINGS)
    np.testing.assert_allclose(found, numpy_momentum_pgd(np.asarray(images), norm, decay), atol=2e-5)
    plain = raise_loss(pgd, jax.random.key(0), wavy_loss, images, norm=norm, random_start=False, **SETTINGS)
    assert jnp.abs(found - plain).max() > 0.01  # else the momentum is not put to the test


def test_the_sum_of_gradients_by_hand() -> None:
    """Gradients (3, 1) and (-1, -3) have L1 norm 4; with decay 1/2 the second sum is (0.375, 0.125) - (0.25, 0.75)."""
    transform = momentum(0.5)
    state = transform.init(jnp.zeros((1, 2)))
    first, state = transform.update(jnp.array([[3.0, 1.0]]), state)
    second, _ = transform.update(jnp.array([[-1.0, -3.0]]), state)
    np.testing.assert_allclose(first, [[0.75, 0.25]])
    np.testing.assert_allclose(second, [[0.125, -0.625]])


@pytest.mark.parametrize("norm", NORMS)
def test_without_decay_it_is_pgd(images: jax.Array, norm: str) -> None:
    settings = SETTINGS | {"norm": norm, "num_restarts": 3, "random_start": True}
    found = raise_loss(momentum_pgd, jax.random.key(3), wavy_loss, images, decay=0.0, **settings)
    np.testing.assert_allclose(found, raise_loss(pgd, jax.random.key(3), wavy_loss, images, **settings), atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("random_start", [False, True])
def test_stays_in_ball_and_box(images: jax.Array, norm: str, random_start: bool) -> None:
    attack = jax.jit(
        lambda key, epsilon: raise_loss(
            momentum_pgd,
            key,
            wavy_loss,
            images,
            epsilon=epsilon,
            step_size=0.5,
            num_steps=3,
            norm=norm,
            random_start=random_start,
        )
    )
    for seed, epsilon in enumerate((0.0, 0.1, 0.7)):
        found = attack(jax.random.key(seed), epsilon)
        assert found.shape == images.shape and 0 <= found.min() and found.max() <= 1
        assert (NORMS[norm].size(found - images) <= epsilon + 1e-6).all()


def test_same_key_same_images(images: jax.Array) -> None:
    attack = jax.jit(lambda key: raise_loss(momentum_pgd, key, wavy_loss, images, random_start=True, **SETTINGS))
    np.testing.assert_array_equal(attack(jax.random.key(5)), attack(jax.random.key(5)))
    assert jnp.abs(attack(jax.random.key(5)) - attack(jax.random.key(6))).max() > 0.05


def test_more_restarts_are_never_worse(images: jax.Array) -> None:
    settings = SETTINGS | {"num_restarts": 4, "random_start": True, "num_steps": 2}
    best = raise_loss(momentum_pgd, jax.random.key(2), wavy_loss, images, **settings)
    settings = settings | {"threat_model": ThreatModel("linf", settings.pop("epsilon")), "transform": momentum(1.0)}
    every = pgd_restarts(wavy_loss, images, key=jax.random.key(2), **settings).adversarial
    losses = np.asarray(jax.vmap(wavy_loss)(every))
    assert len(np.unique(losses.argmax(0))) > 1  # else the choice per example is not put to the test
    np.testing.assert_allclose(wavy_loss(best), losses.max(0), rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_examples_are_independent(images: jax.Array, norm: str) -> None:
    keys = jax.random.split(jax.random.key(4), len(images))
    settings = SETTINGS | {"norm": norm, "num_restarts": 2, "random_start": True, "num_steps": 3}
    attack = jax.jit(lambda images: raise_loss(momentum_pgd, keys, wavy_loss, images, **settings))
    together, among_others = attack(images), attack(images.at[1:].set(1 - images[1:]))
    np.testing.assert_array_equal(together[0], among_others[0])
    assert (jnp.abs(together - among_others)[1:].max((1, 2, 3)) > 0.1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_scale_of_the_loss_does_not_matter(images: jax.Array, norm: str) -> None:
    attack = jax.jit(
        lambda scale: raise_loss(
            momentum_pgd, jax.random.key(0), lambda x: scale * wavy_loss(x), images, norm=norm, **SETTINGS
        )
    )
    for scale in (1e-30, 1e25):
        np.testing.assert_allclose(attack(scale), attack(1.0), atol=1e-4)
    np.testing.assert_array_equal(attack(0.0), images)


def test_pgd_takes_any_transform(images: jax.Array) -> None:
    settings = SETTINGS | {"random_start": False}
    down = raise_loss(pgd, jax.random.key(0), wavy_loss, images, transform=optax.scale(-1.0), **settings)
    np.testing.assert_array_equal(down, raise_loss(pgd, jax.random.key(0), lambda x: -wavy_loss(x), images, **settings))


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"decay": -0.5}, "decay is -0.5; expected 0"),
        ({"num_restarts": 2}, "num_restarts is 2 without random_start"),
        ({"num_steps": -1}, "num_steps is -1"),
        ({"norm": "l1"}, "norm is 'l1'"),
    ],
)
def test_refuses(images: jax.Array, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raise_loss(momentum_pgd, jax.random.key(0), wavy_loss, images, **(SETTINGS | bad))
