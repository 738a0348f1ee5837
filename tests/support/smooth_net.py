"""A small smooth network of fixed weights, with images that it gets right by various margins; and PGD on a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax.attacks import ThreatModel

SHAPE, CLASSES = (6, 6, 1), 5
_RNG = np.random.default_rng(0)
_W1 = jnp.asarray(_RNG.normal(size=(36, 16)).astype(np.float32))
_W2 = jnp.asarray(_RNG.normal(size=(16, CLASSES)).astype(np.float32))


def logits_fn(images: jax.Array) -> jax.Array:
    """[N, 6, 6, 1] -> [N, 5]."""
    return jnp.tanh(images.reshape(len(images), -1) @ _W1) @ _W2


def examples(num_examples: int, *, wrong: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images, and labels of which the first `wrong` are not what the network says."""
    images = np.random.default_rng(1).uniform(0, 1, (num_examples, *SHAPE)).astype(np.float32)
    labels = np.array(logits_fn(jnp.asarray(images)).argmax(-1), np.int32)
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    return images, labels


def raise_loss(
    attack: Callable[..., Any],
    key: Any,
    loss_fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    *,
    epsilon: Any,
    norm: str = "linf",
    **settings: Any,
) -> jax.Array:
    """The images of PGD, FGSM or momentum PGD on a loss of the images alone: the pixels are the logits."""
    shape, labels = images.shape, jnp.zeros(len(images), jnp.int32)
    found = attack(
        lambda x: x.reshape(len(x), -1),
        images,
        labels,
        threat_model=ThreatModel(norm, epsilon),
        key=key,
        loss=lambda logits, labels: loss_fn(logits.reshape(-1, *shape[1:])),
        **settings,
    )
    return found.adversarial
