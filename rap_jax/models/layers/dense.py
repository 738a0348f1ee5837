"""A dense layer that starts as PyTorch's does."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from rap_jax.models.layers.initializers import bias_initializer, dense_kernel_initializer


class Dense(nn.Module):
    """`inputs @ kernel + bias`, [N, in] -> [N, features], with PyTorch's uniform(+-1/sqrt(in)) start of both.

    `nn.Dense` cannot do it: a bias initializer of Linen does not learn how many inputs the layer has.
    """

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        fan_in = inputs.shape[-1]
        kernel = self.param("kernel", dense_kernel_initializer(), (fan_in, self.features), jnp.float32)
        bias = self.param("bias", bias_initializer(fan_in), (self.features,), jnp.float32)
        return jnp.dot(inputs, kernel) + bias.reshape(1, -1)
