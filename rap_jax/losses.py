"""Per-example losses: logits [N, K] and targets in, losses [N] out.

Attacks need one loss per example: an example's gradient must not depend on its neighbours in the batch.
"""

import jax
import jax.numpy as jnp
import optax

# Keeps a ratio finite where all places are equal, as the official implementation does.
_TINY = 1e-12


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


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How far the best wrong class is above the right one, [N]: positive means misclassified.

    Carlini and Wagner, 2017 (https://arxiv.org/abs/1608.04644), section 5, f6, without its bound.

    Args:
      logits: [N, K].
      labels: whole numbers [N].
    """
    return _largest_but(logits, labels) - _at(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Difference of logits ratio, [N]: `margin` over the distance from the first to the third place.

    Croce and Hein, 2020 (https://arxiv.org/abs/2003.01690), eq. 6. It does not change when logits are scaled or
    shifted. Where the label is third it is 1 and has no gradient.

    Args:
      logits: [N, K] with 3 or more classes; a `ValueError` for fewer.
      labels: whole numbers [N].
    """
    _require_classes(logits, 3, "dlr")
    places = jnp.sort(logits, axis=-1)
    return margin(logits, labels) / (places[:, -1] - places[:, -3] + _TINY)


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Difference of logits ratio towards a class, [N]; it rises as `targets` overtakes `labels`.

    Croce and Hein, 2020 (https://arxiv.org/abs/2003.01690), eq. 7.

    Args:
      logits: [N, K] with 4 or more classes; a `ValueError` for fewer.
      labels, targets: whole numbers [N].
    """
    _require_classes(logits, 4, "targeted_dlr")
    places = jnp.sort(logits, axis=-1)
    scale = places[:, -1] - (places[:, -3] + places[:, -4]) / 2 + _TINY
    return (_at(logits, targets) - _at(logits, labels)) / scale


def _at(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logit of each label. A sum under a mask: its gradient is no scatter, which is slow on a CPU."""
    return jnp.sum(jnp.where(_is(labels, logits), logits, 0), axis=-1)


def _largest_but(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.max(jnp.where(_is(labels, logits), -jnp.inf, logits), axis=-1)


def _is(labels: jax.Array, logits: jax.Array) -> jax.Array:
    return labels[:, None] == jnp.arange(logits.shape[-1])[None]


def _require_classes(logits: jax.Array, least: int, loss: str) -> None:
    if logits.shape[-1] < least:
        raise ValueError(f"logits have {logits.shape[-1]} classes; expected {least} or more for the loss {loss}.")
