"""A network of a few numbers that any framework can evaluate, and images for it: all of it arrays, drawn by NumPy.

3x3 convolution with zero padding, ReLU, dense layer. Nothing is pooled: two frameworks may break ties differently.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rap_jax.attacks.checks import LogitsFn

# An edge for which Square has the same tiles on both sides, and two channels, so that a wrong order of axes shows.
SHAPE = (10, 10, 2)
NUM_CLASSES = 5
_FEATURES = 4


class TinyWeights(NamedTuple):
    """Weights. Attributes: kernel: [3, 3, C, F]; bias: [F]; dense: [H * W * F, K], by row, column, feature."""

    kernel: np.ndarray
    bias: np.ndarray
    dense: np.ndarray


def draw_weights(seed: int) -> TinyWeights:
    """Random weights, float32."""
    rng = np.random.default_rng(seed)
    height, width, channels = SHAPE
    draw = lambda *shape: np.asarray(rng.normal(size=shape), np.float32)
    dense = draw(height * width * _FEATURES, NUM_CLASSES) / np.float32(20)
    return TinyWeights(2 * draw(3, 3, channels, _FEATURES), draw(_FEATURES), dense)


def draw_images(seed: int, num_images: int) -> np.ndarray:
    """Noise, uint8 [N, H, W, C], a fifth of it black and a fifth white: the borders of the box count."""
    noise = np.random.default_rng(seed).uniform(-85, 340, (num_images, *SHAPE))
    return noise.clip(0, 255).astype(np.uint8)


def logits_fn(weights: TinyWeights) -> LogitsFn:
    """images [N, H, W, C] -> logits [N, K]."""

    def logits(images: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        hidden = lax.conv_general_dilated(images, jnp.asarray(weights.kernel), (1, 1), "SAME", dimension_numbers=layout)
        hidden = jax.nn.relu(hidden + jnp.asarray(weights.bias).reshape(1, 1, 1, -1))
        return hidden.reshape(len(images), -1) @ jnp.asarray(weights.dense)

    return logits
