"""Random changes of training images, per image: a crop, a mirror image.

As in the paper's CIFAR-10 runs (Ye et al., ICCV 2019): a crop out of 4 black pixels on each side, then a flip.
"""

import jax
import jax.numpy as jnp

from rap_jax.config import AugmentConfig, require


def augment(key: jax.Array, images: jax.Array, config: AugmentConfig) -> jax.Array:
    """Crops each image at a random place out of its padded self, and mirrors it with probability 1/2.

    Pure; under `jax.jit` with images that are sharded over their first axis the result is the same on any number of
    devices, and sharded alike.

    Args:
      key: typed PRNG key.
      images: any type in which 0 is black, [N, H, W, C].
      config: what is on. With nothing on, `images` itself is returned.

    Returns:
      The changed images, of the same shape and type.

    Raises:
      ValueError: `images` has another rank, or a crop could miss the whole image.
    """
    require(images.ndim == 4, "shape of images", images.shape, "[N, H, W, C]")
    crop_key, flip_key = jax.random.split(key)
    if config.crop_padding:
        images = _crop(crop_key, images, config.crop_padding)
    if config.horizontal_flip:
        flipped = jax.random.bernoulli(flip_key, jnp.float32(0.5), (images.shape[0], 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    return images


def _crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    num_images, *shape = images.shape
    smaller = min(shape[:2])
    require(padding < smaller, "crop_padding", padding, f"fewer pixels than the smaller side of the images, {smaller}")
    corners = jax.random.randint(key, (num_images, 2), 0, 2 * padding + 1, jnp.int32)
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    # Of the ways to write this the quickest on CPU; advanced indexing would also gather sharded images on one device.
    take = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, jnp.int32(0)), shape))
    return take(jnp.pad(images, around), corners)
