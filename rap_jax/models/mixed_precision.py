"""A network that computes in a narrow float while everything around it stays in float32.

    model = in_dtype(model, "bfloat16")

Weights, gradients, optimizer, logits, loss and the images of an attack are float32; only what lies between images and
logits is bfloat16. It has the exponents of float32, so small gradients do not vanish and the loss needs no scale. The
moments and the running statistics of BatchNorm are float32 all the same. What a bias gets from all images and pixels
is added up in bfloat16: in a training step no less exact than the rest, but in evaluation mode, where BatchNorm is a
bias too and no step takes that gradient, it can be off by half.

It pays on a GPU or TPU, which have units for it. A CPU without them is slower than in float32: a step of a LeNet of
width 4 with PGD-10 takes 1.55 times as long on 2 cores, and 7 times with `implementation` xla.

Reference: Micikevicius et al., "Mixed Precision Training", 2018, https://arxiv.org/abs/1710.03740; Kalamkar et al., "A
Study of BFLOAT16 for Deep Learning Training", 2019, https://arxiv.org/abs/1905.12322.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rap_jax.config import require
from rap_jax.models.model import BatchStats, Model, Params

DTYPES: tuple[str, ...] = ("float32", "bfloat16")


def in_dtype(model: Model, dtype: str) -> Model:
    """The same network with passes in `dtype`: `float32` leaves it as it is, `bfloat16` casts params and images.

    The casts are part of the function, so its gradients are float32 like the params and images that it is given.

    Raises:
        ValueError: for another dtype.
    """
    require(dtype in DTYPES, "compute_dtype", dtype, f"one of {', '.join(DTYPES)}")
    if dtype == "float32":
        return model
    cast: Any = lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

    def apply(params: Params, batch_stats: BatchStats, images: jax.Array, train: bool) -> tuple[jax.Array, BatchStats]:
        logits, moved = model.apply(cast(params), batch_stats, cast(images), train)
        return logits.astype(jnp.float32), moved

    return model._replace(apply=apply)
