"""What a network computes, in short: by it work on disk is recognised as that of this very network.

    fingerprint(logits_fn, images.shape[1:])            hex, the same in every process of one installation

It covers the compiled program of the logits and of their gradient, where there is one, and every array that the
function has captured. So it notices a gradient that was mended although the logits stayed. Another version of JAX, or
another kind of device, may give another fingerprint. What a callback to another runtime computes is not seen.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rap_jax.captured import Captured, lift_captured
from rap_jax.digest import digest
from rap_jax.traced import add_gradient, trace


def fingerprint(logits_fn: Callable[..., jax.Array], image_shape: tuple[int, ...], *draw: jax.Array) -> str:
    """Of a function images [N, *image_shape] -> logits, or (images, key) -> logits with `draw` = (key,)."""
    images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    lifted, captured = lift_captured(logits_fn, images, *draw)
    without = trace(logits_fn, images, *draw).no_gradient

    def with_gradient(captured: Captured, images: jax.Array, *draw: jax.Array) -> Any:
        network = functools.partial(lifted, captured)
        return (network if without else add_gradient(network))(images, *draw)

    program = jax.jit(with_gradient).lower(captured, images, *draw).as_text()
    return hashlib.sha256(f"{program}{digest(captured)}".encode()).hexdigest()
