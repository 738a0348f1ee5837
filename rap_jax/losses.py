"""Per-example losses: logits [N, K] and labels [N] in, losses [N] out.

Attacks need one loss per example: an example's gradient must not depend on its neighbours in the batch.
"""

import jax
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy in nats, [N], of logits [N, K] against integer labels [N]."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
