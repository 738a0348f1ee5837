"""Which wrong classes a targeted attack aims at."""

import jax
import jax.numpy as jnp


def rank_targets(logits: jax.Array, numbers: jax.Array, num_targets: int) -> jax.Array:
    """The class of rank 2 + `numbers` for each example, int [N]: number 0 is the runner-up.

    Args:
      logits: at the clean images, [N, K].
      numbers: from 0 to `num_targets` - 1, int [N].

    Raises:
      ValueError: more targets than wrong classes.
    """
    num_classes = logits.shape[-1]
    if num_targets > num_classes - 1:
        raise ValueError(
            f"num_targets is {num_targets}; expected at most {num_classes - 1} with {num_classes} classes."
        )
    falling = jnp.argsort(logits, axis=-1, descending=True)
    return jnp.take_along_axis(falling, 1 + numbers[:, None], axis=-1)[:, 0]
