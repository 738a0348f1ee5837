"""Tests of the random changes of training images."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rap_jax.config import AugmentConfig
from rap_jax.data import augment

pytestmark = pytest.mark.usefixtures("optimised")

BOTH = AugmentConfig(crop_padding=2, horizontal_flip=True)
KEY = jax.random.key(3)
quick_augment = jax.jit(augment, static_argnames="config")


def batch(num_examples: int, shape: tuple[int, int, int] = (5, 7, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (num_examples, *shape), np.uint8)


def all_versions(image: np.ndarray, config: AugmentConfig) -> dict[bytes, tuple[int, int, bool]]:
    """Every image that may come out, with the corner of its crop and whether it is flipped; by NumPy."""
    (height, width, _), padding = image.shape, config.crop_padding
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    versions = {}
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            crop = padded[row : row + height, column : column + width]
            versions[crop.tobytes()] = (row, column, False)
            if config.horizontal_flip:
                versions[np.ascontiguousarray(crop[:, ::-1]).tobytes()] = (row, column, True)
    return versions


@pytest.mark.parametrize("config", [BOTH, AugmentConfig(crop_padding=4), AugmentConfig(horizontal_flip=True)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_image_is_a_crop_of_its_padded_self_or_its_mirror_image(
    config: AugmentConfig, dtype: type[np.generic]
) -> None:
    images = batch(40).astype(dtype)
    changed = quick_augment(KEY, images, config=config)
    chex.assert_shape(changed, images.shape)
    chex.assert_type(changed, dtype)
    for before, after in zip(images, np.asarray(changed), strict=True):
        assert after.tobytes() in all_versions(before, config)


def test_every_corner_and_both_sides_come_equally_often_and_independently() -> None:
    (image,) = batch(1)
    versions = all_versions(image, BOTH)
    assert len(versions) == 50
    changed = quick_augment(KEY, jnp.asarray(np.stack([image] * 5000)), config=BOTH)
    drawn = [versions[version.tobytes()] for version in np.asarray(changed)]
    counts = np.array([drawn.count(version) for version in versions.values()])
    assert np.all(np.abs(counts - 100) < 5 * np.sqrt(100))
    # Chi-squared of 49 degrees of freedom: mean 49, standard deviation 10.
    assert ((counts - 100) ** 2 / 100).sum() < 49 + 5 * 10


def test_the_key_decides_everything() -> None:
    images = batch(64)
    first, again = (quick_augment(KEY, images, config=BOTH) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, augment(KEY, jnp.asarray(images), BOTH))
    assert not np.array_equal(first, quick_augment(jax.random.key(4), images, config=BOTH))


def test_turning_one_off_leaves_the_draws_of_the_other() -> None:
    images = batch(64)
    cropped = quick_augment(KEY, images, config=AugmentConfig(crop_padding=2))
    flipped = quick_augment(KEY, cropped, config=AugmentConfig(horizontal_flip=True))
    np.testing.assert_array_equal(flipped, quick_augment(KEY, images, config=BOTH))


def test_with_nothing_on_the_array_is_returned() -> None:
    images = jnp.asarray(batch(3))
    assert augment(KEY, images, AugmentConfig()) is images


def test_eight_devices_give_the_result_of_one_and_keep_the_shards() -> None:
    images = batch(64, (8, 8, 3))
    mesh = Mesh(np.array(jax.devices()), "data")
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    replicated = jax.device_put(KEY, NamedSharding(mesh, PartitionSpec()))
    compiled = quick_augment.lower(replicated, jax.device_put(images, sharding), config=BOTH).compile()
    changed = compiled(replicated, jax.device_put(images, sharding))
    np.testing.assert_array_equal(changed, quick_augment(KEY, images, config=BOTH))
    assert changed.sharding.is_equivalent_to(sharding, images.ndim)
    assert not any(name in compiled.as_text() for name in ("all-gather", "all-reduce", "all-to-all"))


def test_it_may_be_called_inside_a_loop() -> None:
    images = jnp.asarray(batch(6))
    step = functools.partial(augment, images=images, config=BOTH)
    scanned = jax.lax.map(lambda key: step(key), jax.random.split(KEY, 3))
    for key, result in zip(jax.random.split(KEY, 3), scanned, strict=True):
        np.testing.assert_array_equal(result, augment(key, images, BOTH))


def test_a_crop_that_could_miss_the_image_is_refused() -> None:
    images = jnp.asarray(batch(2))
    augment(KEY, images, AugmentConfig(crop_padding=4))
    with pytest.raises(ValueError, match="crop_padding is 5; expected fewer pixels .*, 5"):
        augment(KEY, images, AugmentConfig(crop_padding=5))
    with pytest.raises(ValueError, match="shape of images"):
        augment(KEY, images[0], BOTH)
