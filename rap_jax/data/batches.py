"""The order of examples, and batches for a training step: gathered, augmented, mixed.

Augmentation as in the paper's CIFAR-10 runs (Ye et al., ICCV 2019): a crop out of 4 black pixels on each side, then a
flip.

Differs from the authors' code: (1) with mixup and an attack, the mixed images are attacked, against the mixed labels;
label smoothing is part of the training loss alone, since an attack maximises the error and not the confidence.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax._runtime.mesh import take_images
from rap_jax.config import AugmentConfig, TrainConfig, require


def augment(key: jax.Array, images: jax.Array, config: AugmentConfig) -> jax.Array:
    """Crops each image at a random place out of its padded self, and mirrors it with probability 1/2.

    Pure; under `jax.jit` with images that are sharded over their first axis the result is the same on any number of
    devices, and sharded alike.

    Args:
      images: any type in which 0 is black, [N, H, W, C]; those returned have the same shape and type.
      config: the changes to make. Without any, `images` itself is returned.

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


class BatchInputs(NamedTuple):
    """The images of a batch, or of a split with the indices of the batch in it."""

    images: jax.Array  # uint8 [N, H, W, C], or of a split the rows of `put_split`
    labels: jax.Array  # int32 [N]
    indices: np.ndarray | jax.Array | None = None  # int32 [batch_size]; None if the images are the batch


def make_batch(
    key: jax.Array, inputs: BatchInputs, config: TrainConfig, *, num_classes: int, image_shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Gathers the examples of a batch, changes their images at random and mixes them, as `config` says.

    Without augmentation and mixup the key is not used.

    Returns:
      Images float32 [N, H, W, C] in [0, 1], and targets: labels int32 [N], or mixed, float32 [N, K].
    """
    augment_key, mixup_key = jax.random.split(key)
    images, labels, indices = inputs
    if indices is not None:
        images, labels = take_images(images, indices, image_shape), labels[indices]
    images = to_unit(augment(augment_key, images, config.augment))
    if config.mixup_alpha == 0:
        return images, labels
    return mixup(mixup_key, images, labels, config.mixup_alpha, num_classes=num_classes)


def mixup(
    key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float, *, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with another of the batch, by one share for all (Zhang et al., 2018).

    share ~ Beta(alpha, alpha); x = share x_i + (1 - share) x_j, and the one-hot labels likewise; j runs through a
    random permutation of the batch.

    Returns:
      Mixed images, float32 [N, H, W, C], and mixed labels, float32 [N, num_classes].

    Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization", https://arxiv.org/abs/1710.09412, and the
    authors' implementation, which draws one share per batch too.
    """
    share_key, order_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)
    other = jax.random.permutation(order_key, len(images))
    mix = lambda values: share * values + (1 - share) * values[other]
    return mix(images), mix(jax.nn.one_hot(labels, num_classes, dtype=jnp.float32))


@functools.partial(jax.jit, static_argnames="num_examples")
def epoch_order(key: jax.Array, epoch: jax.Array | int, num_examples: int) -> jax.Array:
    """The order of the examples in one epoch, counted from 0: a permutation of 0..N-1, int32 [N].

    A pure function of the key of the run and the epoch, so a run that was cut off needs no more than its step number
    to go on.
    """
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples).astype(jnp.int32)


def to_unit(images: jax.Array | np.ndarray) -> jax.Array:
    """Scales bytes, uint8 of any shape, to what models and attacks take: float32 in [0, 1], both ends exact.

    Raises:
      ValueError: the type is another, as of images that have been scaled already.
    """
    require(images.dtype == np.uint8, "dtype of images", images.dtype, "uint8, in 0..255")
    return jnp.asarray(images).astype(jnp.float32) / 255


def padded_batches(num_examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Goes through all N examples once, in order, in batches of one size B.

    The last batch is filled up with example 0, marked as not valid, so that nothing is lost or counted twice and a
    jitted function is compiled once.

    Returns:
      Iterator over ceil(N / B) pairs of indices, int32 [B], and whether each of them counts, bool [B].

    Raises:
      ValueError: one of the two is below 1.
    """
    require(num_examples >= 1, "num_examples", num_examples, "1 or more examples")
    require(batch_size >= 1, "batch_size", batch_size, "1 or more examples")
    return (_padded_batch(start, num_examples, batch_size) for start in range(0, num_examples, batch_size))


def _padded_batch(start: int, num_examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    indices = np.arange(start, start + batch_size, dtype=np.int32)
    valid = indices < num_examples
    return np.where(valid, indices, np.int32(0)), valid
