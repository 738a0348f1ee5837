"""Batch normalisation as PyTorch has it.

    outputs, mean, var = batch_norm(inputs, scale, shift)               # training: by the batch
    outputs = normalise(inputs, mean, var, scale, shift)                # evaluation: by running statistics

The batch is the global batch: its mean is a plain mean, and where the batch is split over devices XLA sums over them.

Differs from `flax.linen.BatchNorm`: (1) the running variance takes the unbiased variance of the batch, while the batch
itself is normalised by the biased one, as in PyTorch, so that the statistics equal those of the authors' code;
(2) the variance is the mean of squared deviations, not E[x^2] - E[x]^2, which cancels where a mean is far from 0;
(3) the parameters are called scale and shift, so that a convolution and its norm can share a layer (`ConvNorm`).

Reference: Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn import initializers

EPSILON = 1e-5
MOMENTUM = 0.9  # share of the old running statistics; PyTorch calls 1 - 0.9 momentum


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last. Parameters: scale [C], shift [C]; statistics: mean [C], var [C].

    With `train` it normalises by the batch and moves the statistics, where they are mutable; without, it uses them.
    """

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """[..., C] -> [..., C]."""
        shape = inputs.shape[-1:]
        scale = self.param("scale", initializers.ones, shape)
        shift = self.param("shift", initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if not train:
            return normalise(inputs, running_mean.value, running_var.value, scale, shift)
        mean, var = batch_moments(inputs)
        count = inputs.size // inputs.shape[-1]
        # One number per channel has no unbiased variance; PyTorch refuses it, here it counts as its biased one, 0.
        unbiased = var * (count / max(count - 1, 1))
        running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * lax.stop_gradient(mean)
        running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * lax.stop_gradient(unbiased)
        return normalise(inputs, mean, var, scale, shift)


def batch_moments(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance, [C] each, of inputs [..., C]."""
    axes = tuple(range(inputs.ndim - 1))
    mean = inputs.mean(axes, keepdims=True)
    var = jnp.square(inputs - mean).mean(axes)
    return mean.reshape(-1), var


def normalise(inputs: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """(inputs - mean) / sqrt(var + EPSILON) * scale + shift for inputs [..., C] and four vectors [C]."""
    # As one multiplication and one addition per number: the vectors are small, the inputs are not.
    factor = scale * lax.rsqrt(var + EPSILON)
    offset = shift - mean * factor
    per_channel = (1,) * (inputs.ndim - 1) + (-1,)
    return inputs * factor.reshape(per_channel) + offset.reshape(per_channel)
