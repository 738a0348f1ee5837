"""Params of a small network with BatchNorm: nested layers, all numbers random."""

import jax
import jax.numpy as jnp


def layer(outputs: int, inputs: int, seed: int) -> dict[str, jax.Array]:
    """A convolution with its BatchNorm, all of it random."""
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = {"kernel": (3, 3, inputs, outputs), "bias": (outputs,), "scale": (outputs,), "shift": (outputs,)}
    return {n: jax.random.normal(key, shape) for key, (n, shape) in zip(keys, shapes.items(), strict=True)}


NORMED = {
    "conv1": layer(4, 1, 0),
    "group1_block0": {"conv1": layer(6, 4, 1), "shortcut": layer(6, 4, 2)},
    "fc": {"kernel": jax.random.normal(jax.random.key(3), (6, 10)), "bias": jnp.ones(10)},
}
NORMED_LAYERS = ["conv1", "group1_block0/conv1", "group1_block0/shortcut"]
