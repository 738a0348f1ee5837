"""What a network computes, in short: by it work on disk is recognised as that of this very network.

    fingerprint(logits_fn, images.shape[1:])            hex, the same in every process of one installation

It covers the compiled program of the logits and of their gradient, and every array that the function has captured. So
it notices a gradient that was mended although the logits stayed. Another version of JAX, or another kind of device, may
give another fingerprint.
"""

import hashlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax.captured import Captured, lift_captured
from rap_jax.digest import digest


def fingerprint(logits_fn: Callable[..., jax.Array], image_shape: tuple[int, ...], *draw: jax.Array) -> str:
    """Of a function images [N, *image_shape] -> logits, or (images, key) -> logits with `draw` = (key,)."""
    images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    lifted, captured = lift_captured(logits_fn, images, *draw)

    def with_gradient(captured: Captured, images: jax.Array, *draw: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, pull_back = jax.vjp(lambda x: lifted(captured, x, *draw), images)
        return logits, pull_back(jnp.ones_like(logits))[0]

    program = jax.jit(with_gradient).lower(captured, images, *draw).as_text()
    return hashlib.sha256(f"{program}{digest(captured)}".encode()).hexdigest()
