"""From the indices of a batch to what a training step learns from: gathered, augmented, mixed.

Differs from the authors' code: (1) with mixup and an attack, the mixed images are attacked, against the mixed labels;
label smoothing is part of the training loss alone, since an attack looks for what is wrong and not for what is unsure.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rap_jax.config import TrainConfig
from rap_jax.data import augment, to_unit
from rap_jax.state import DeviceSplit


class Batch(NamedTuple):
    """Attributes: images: float32 [N, H, W, C] in [0, 1]; targets: labels int32 [N], or mixed, float32 [N, K]."""

    images: jax.Array
    targets: jax.Array

    @property
    def labels(self) -> jax.Array:
        """The class of the largest share, int32 [N]."""
        return self.targets if self.targets.ndim == 1 else self.targets.argmax(-1).astype(jnp.int32)


def make_batch(
    key: jax.Array, split: DeviceSplit, indices: jax.Array | None, config: TrainConfig, *, num_classes: int
) -> Batch:
    """Gathers the examples [N] that `indices` names, changes their images at random and mixes them, as `config` says.

    Without indices the split is the batch.

    A pure function of its arguments; without augmentation and mixup the key is not used.
    """
    augment_key, mixup_key = jax.random.split(key)
    chosen = split if indices is None else DeviceSplit(split.images[indices], split.labels[indices])
    batch = Batch(to_unit(augment(augment_key, chosen.images, config.augment)), chosen.labels)
    return mixup(mixup_key, batch, config.mixup_alpha, num_classes=num_classes) if config.mixup_alpha > 0 else batch


def mixup(key: jax.Array, batch: Batch, alpha: float, *, num_classes: int) -> Batch:
    """Mixes each example with another of the batch, by one share for all (Zhang et al., 2018).

    share ~ Beta(alpha, alpha); x = share x_i + (1 - share) x_j, and the one-hot labels likewise; j runs through a
    random permutation of the batch.

    Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization", https://arxiv.org/abs/1710.09412, and the
    authors' implementation, which draws one share per batch too.
    """
    share_key, order_key = jax.random.split(key)
    share = jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32)
    other = jax.random.permutation(order_key, len(batch.images))
    mix = lambda values: share * values + (1 - share) * values[other]
    return Batch(mix(batch.images), mix(jax.nn.one_hot(batch.targets, num_classes, dtype=jnp.float32)))
