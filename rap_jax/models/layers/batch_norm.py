"""Batch normalisation as PyTorch has it.

    outputs = BatchNorm(features=8)(inputs, train)

The batch is the global batch: its mean is a plain mean, and where the batch is split over devices XLA sums over them.

Differs from `flax.linen.BatchNorm`: (1) the running variance takes the unbiased variance of the batch, while the batch
itself is normalised by the biased one, as in PyTorch, so that the statistics equal those of the authors' code;
(2) the variance is the mean of squared deviations, not E[x^2] - E[x]^2, which cancels where a mean is far from 0;
(3) the parameters are called scale and shift, so that a convolution and its norm can share a layer (`ConvNorm`).

Inputs may be narrower than float32 (`models.in_dtype`): outputs are then as narrow, moments and statistics are not.

Reference: Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn import initializers

from rap_jax._runtime.arrays import at_least_float32

BATCH_NORM_EPSILON = 1e-5  # added to the variance of every BatchNorm
MOMENTUM = 0.9  # share of the old running statistics; PyTorch calls 1 - 0.9 momentum


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last. Parameters: scale [C], shift [C]; statistics: mean [C], var [C].

    With `train` it normalises by the batch and moves the statistics, where they are mutable; without, it uses them.
    """

    features: int  # number of channels C
    folded: bool = False  # a factor and an offset per channel, which have taken in the statistics

    def setup(self) -> None:
        self.scale = self.param("scale", initializers.ones, (self.features,), jnp.float32)
        self.shift = self.param("shift", initializers.zeros, (self.features,), jnp.float32)
        if self.folded:
            return
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,), jnp.float32)
        self.var = self.variable("batch_stats", "var", jnp.ones, (self.features,), jnp.float32)

    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        """[..., C] -> [..., C]."""
        if self.folded:
            return scale_and_shift(inputs, self.scale, self.shift)
        if not train:
            return scale_and_shift(inputs, *self.running())
        mean, var = batch_moments(inputs)
        count = inputs.size // inputs.shape[-1]
        # One number per channel has no unbiased variance; PyTorch refuses it, here it counts as its biased one, 0.
        unbiased = var * (count / max(count - 1, 1))
        self.mean.value = MOMENTUM * self.mean.value + (1 - MOMENTUM) * lax.stop_gradient(mean)
        self.var.value = MOMENTUM * self.var.value + (1 - MOMENTUM) * lax.stop_gradient(unbiased)
        return scale_and_shift(inputs, *factor_and_offset(mean, var, self.scale, self.shift))

    def running(self) -> tuple[jax.Array, jax.Array]:
        """Factor [C] and offset [C] of evaluation mode: outputs are inputs * factor + offset. As wide as the scale."""
        factor, offset = factor_and_offset(self.mean.value, self.var.value, self.scale, self.shift)
        return factor.astype(self.scale.dtype), offset.astype(self.scale.dtype)


def batch_moments(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance, [C] each, of inputs [..., C]; in float32 or wider."""
    return _moments(at_least_float32(inputs))


@jax.custom_jvp
def _moments(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean = _mean(inputs)
    return mean.reshape(-1), _mean(jnp.square(inputs - mean)).reshape(-1)


@_moments.defjvp
def _moments_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    """The variance does not move with the mean, since deviations sum to 0.

    By the rules of its parts a backward pass would sum these zeros, over the devices too: one more wait in each layer.
    """
    (inputs,), (tangent,) = primals, tangents
    mean, var = _moments(inputs)
    deviations = inputs - mean.reshape(1, *[1] * (inputs.ndim - 2), -1)
    return (mean, var), (_mean(tangent).reshape(-1), 2 * _mean(deviations * tangent).reshape(-1))


def _mean(inputs: jax.Array) -> jax.Array:
    return inputs.mean(tuple(range(inputs.ndim - 1)), keepdims=True)


def factor_and_offset(
    mean: jax.Array, var: jax.Array, scale: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(inputs - mean) / sqrt(var + 1e-5) * scale + shift as inputs * factor + offset; all are vectors [C]."""
    factor = at_least_float32(scale) * lax.rsqrt(var + BATCH_NORM_EPSILON)
    return factor, at_least_float32(shift) - mean * factor


def scale_and_shift(inputs: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """inputs * factor + offset for inputs [..., C] and two vectors [C]; as narrow as the inputs."""
    per_channel = (1,) * (inputs.ndim - 1) + (-1,)
    wider = max(inputs.dtype, factor.dtype, key=lambda dtype: dtype.itemsize)
    factor, offset = (vector.reshape(per_channel).astype(wider) for vector in (factor, offset))
    return (inputs.astype(wider) * factor + offset).astype(inputs.dtype)
