"""Per-example losses: logits [N, K] and targets in, losses [N] out.

Attacks need one loss per example: an example's gradient must not depend on its neighbours in the batch.
"""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy in nats, [N], of logits [N, K].

    Args:
      logits: [N, K].
      targets: whole labels [N], or a distribution over the classes per example, float [N, K].
    """
    if targets.ndim == logits.ndim:
        return optax.losses.softmax_cross_entropy(logits, targets)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)


def smooth_labels(targets: jax.Array, label_smoothing: float, num_classes: int) -> jax.Array:
    """Spreads a share of the target evenly over all classes, the right one included (Szegedy et al., 2016, section 7).

    Args:
      targets: labels [N], or distributions [N, K].
      label_smoothing: the share, in [0, 1); with 0 the targets come back as they are.
      num_classes: K.

    Returns:
      Float [N, K], rows of sum 1 (or the targets themselves).
    """
    if label_smoothing == 0:
        return targets
    distribution = targets if targets.ndim == 2 else jax.nn.one_hot(targets, num_classes, dtype=jnp.float32)
    return (1 - label_smoothing) * distribution + label_smoothing / num_classes
