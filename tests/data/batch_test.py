"""What a step learns from: gathered, augmented by the key, mixed in pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax._runtime.mesh import make_mesh, replicated, split_over_data
from rap_jax.config import AugmentConfig, TrainConfig
from rap_jax.data.batches import BatchInputs, make_batch, mixup
from rap_jax.training.step import AttackInputs

pytestmark = pytest.mark.usefixtures("optimised")

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), np.uint8)
LABELS = (np.arange(20) % 5).astype(np.int32)
INDICES = np.array([7, 3, 3, 19, 0, 11, 4, 8], np.int32)
INPUTS = BatchInputs(jnp.asarray(IMAGES), jnp.asarray(LABELS), jnp.asarray(INDICES))
PLAIN = TrainConfig(None)
AUGMENTED = TrainConfig(None, augment=AugmentConfig(crop_padding=2, horizontal_flip=True), mixup_alpha=0.7)


def batch_of(config: TrainConfig, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    return make_batch(jax.random.key(seed), INPUTS, config, num_classes=5, image_shape=IMAGES.shape[1:])


def test_a_plain_batch_is_what_the_indices_name() -> None:
    alone = BatchInputs(jnp.asarray(IMAGES[INDICES]), jnp.asarray(LABELS[INDICES]))
    for images, targets in (
        batch_of(PLAIN),
        make_batch(jax.random.key(0), alone, PLAIN, num_classes=5, image_shape=IMAGES.shape[1:]),
    ):
        np.testing.assert_allclose(images, IMAGES[INDICES] / np.float32(255), rtol=1e-6)
        np.testing.assert_array_equal(targets, LABELS[INDICES])


def test_augmentation_follows_the_key() -> None:
    config = TrainConfig(None, augment=AugmentConfig(crop_padding=2, horizontal_flip=True))
    (first, targets), (again, _), (other, _) = batch_of(config), batch_of(config), batch_of(config, seed=1)
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()
    assert first.shape == (8, 6, 6, 3) and float(first.max()) <= 1
    np.testing.assert_array_equal(targets, LABELS[INDICES])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixup_mixes_images_and_labels_by_one_share(alpha: float) -> None:
    images = jnp.eye(8).reshape(8, 8, 1, 1)  # image i is 1 at pixel i: what is in a mixture can be read off
    mixed, targets = mixup(jax.random.key(3), images, jnp.arange(8), alpha, num_classes=8)
    shares = np.asarray(mixed).reshape(8, 8)
    np.testing.assert_allclose(shares, targets, atol=1e-6)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-6)  # partners are a permutation
    own = np.diag(shares)
    share = own[own < 1 - 1e-6][0]
    assert 0 < share < 1 and ((np.abs(own - share) < 1e-6) | (np.abs(own - 1) < 1e-6)).all()
    assert (own < 1 - 1e-6).sum() >= 4


def test_the_share_is_drawn_from_beta() -> None:
    images, labels = jnp.eye(2).reshape(2, 2, 1, 1), jnp.arange(2)
    keys = jax.random.split(jax.random.key(0), 2000)
    mix = jax.vmap(lambda key: mixup(key, images, labels, 0.5, num_classes=2)[1][0, 0])
    shares = np.asarray(mix(keys))
    shares = shares[shares < 1]  # half of the pairs are an image with itself
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert 800 < len(shares) < 1200
    assert shares.mean() == pytest.approx(0.5, abs=0.04) and shares.var() == pytest.approx(1 / 8, rel=0.1)


def test_labels_of_a_mixture_are_the_larger_share() -> None:
    targets = jnp.array([[0.3, 0.7], [0.9, 0.1]])
    images, none = jnp.zeros((2, 1, 1, 1)), jnp.zeros(())
    np.testing.assert_array_equal(AttackInputs(images, targets, none, none).labels, [1, 0])
    np.testing.assert_array_equal(AttackInputs(images, jnp.array([1, 0]), none, none).labels, [1, 0])


def test_sharded_batches_are_the_same() -> None:
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(devices)
        make = jax.jit(
            lambda key, inputs: make_batch(key, inputs, AUGMENTED, num_classes=5, image_shape=IMAGES.shape[1:])
        )
        indices = jax.device_put(INDICES, split_over_data(mesh))
        split = jax.device_put((IMAGES, LABELS), replicated(mesh))
        results.append(make(jax.random.key(0), BatchInputs(*split, indices)))
    for one, eight in zip(*results, strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-6)
