"""A small smooth network of fixed weights, with images that it gets right by various margins."""

import jax
import jax.numpy as jnp
import numpy as np

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
