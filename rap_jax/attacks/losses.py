"""Per-example losses: logits [N, K] and targets in, losses [N] out.

Attacks need one loss per example: an example's gradient must not depend on its neighbours in the batch. So a loss
refuses labels that would broadcast. Shapes and dtypes are looked at when a function is traced; values only where they
are known then, as those of labels that `jax.jit` is not given as an argument. A traced label that is none of the
classes cannot be refused, and the losses do not agree on it: `cross_entropy` is NaN, or counts a negative label from
the last class; `margin` and the ratios take its logit as 0.

Logits of 16 bits are taken as float32: in bfloat16 the probability of a confident answer rounds to 1, and its gradient
to 0. Labels may have any integer dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rap_jax._runtime.arrays import at_least_float32, in_words, is_array, known_values

# Keeps a ratio finite where all places are equal, as the official implementation does.
_TINY = 1e-12
# How far the sum of a distribution that is rounded to bfloat16 may be from 1.
_SUM_ROUNDING = 2e-2
_OR_DISTRIBUTIONS = ", or a distribution over the classes, float [N, K]"


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy in nats, [N], of logits [N, K].

    Args:
      logits: float [N, K], of 2 or more classes.
      targets: whole labels [N], or a distribution over the classes per example, float [N, K].

    Raises:
      ValueError: other shapes or dtypes, a label that is none of the classes, or rows that do not sum to 1.
    """
    logits = _checked_logits(logits, 2, "cross_entropy")
    if _are_distributions(targets):
        distributions = _checked_distributions(targets, logits.shape).astype(logits.dtype)
        return optax.losses.softmax_cross_entropy(logits, distributions)
    labels = check_labels(targets, len(logits), logits.shape[1], or_else=_OR_DISTRIBUTIONS)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def kl_divergence(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence KL(probabilities || softmax(logits)) in nats, [N]; 0 where the two agree.

    Args:
      logits: float [N, K], of 2 or more classes.
      probabilities: a distribution over the classes per example, float [N, K]; no gradient reaches it.

    Raises:
      ValueError: what `cross_entropy` refuses, and whole labels.
    """
    if not _are_distributions(probabilities):
        raise ValueError(f"probabilities are {in_words(probabilities)}; expected float [N, K], in rows of sum 1.")
    probabilities = jax.lax.stop_gradient(probabilities)
    return cross_entropy(logits, probabilities) - jnp.sum(jax.scipy.special.entr(probabilities), axis=-1)


def smooth_labels(targets: jax.Array, label_smoothing: float, num_classes: int) -> jax.Array:
    """Spreads a share of the target evenly over all classes, the right one included (Szegedy et al., 2016, section 7).

    Args:
      targets: whole labels [N], or distributions, float [N, K].
      label_smoothing: the share, in [0, 1), may be traced; with 0 the targets come back as they are.
      num_classes: K.

    Returns:
      Float [N, K], rows of sum 1 (or the targets themselves).

    Raises:
      ValueError: targets that `cross_entropy` refuses, another share, or a number of classes that is not whole.
    """
    is_known = not isinstance(label_smoothing, jax.core.Tracer)
    if is_known and not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing!r}; expected a share of 0 or more and below 1.")
    if not isinstance(num_classes, int | np.integer):
        raise ValueError(f"num_classes is {num_classes!r}; expected a whole number, of the logits.")
    if _are_distributions(targets):
        distribution = _checked_distributions(targets, (len(targets), num_classes))
    else:
        labels = check_labels(targets, num_classes=num_classes, or_else=_OR_DISTRIBUTIONS)
        distribution = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    if is_known and label_smoothing == 0:
        return targets
    return (1 - label_smoothing) * distribution + label_smoothing / num_classes


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How far the best wrong class is above the right one, [N]: positive means misclassified.

    Carlini and Wagner, 2017 (https://arxiv.org/abs/1608.04644), section 5, f6, without its bound.

    Args:
      logits: float [N, K], of 2 or more classes.
      labels: whole numbers [N].

    Raises:
      ValueError: other shapes or dtypes, or a label that is none of the classes.
    """
    logits = _checked_logits(logits, 2, "margin")
    labels = check_labels(labels, len(logits), logits.shape[1])
    return _largest_but(logits, labels) - _at(logits, labels)


def probability_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`margin` of the probabilities instead of the logits, [N], in [-1, 1]: positive means misclassified.

    Xie et al., 2024 (https://arxiv.org/abs/2411.15210), the loss of the probability margin attack. Against the right
    class its gradient is that of all wrong ones, each by its probability; it vanishes where the network is sure.

    Args:
      logits: float [N, K], of 2 or more classes.
      labels: whole numbers [N].

    Raises:
      ValueError: what `margin` refuses.
    """
    return margin(jax.nn.softmax(_checked_logits(logits, 2, "probability_margin")), labels)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Difference of logits ratio, [N]: `margin` over the distance from the first to the third place.

    Croce and Hein, 2020 (https://arxiv.org/abs/2003.01690), eq. 6. It does not change when logits are scaled or
    shifted. Where the label is third it is 1 and has no gradient.

    Args:
      logits: float [N, K], of 3 or more classes.
      labels: whole numbers [N].

    Raises:
      ValueError: fewer classes, or what `margin` refuses.
    """
    logits = _checked_logits(logits, 3, "dlr")
    places = jnp.sort(logits, axis=-1)
    return margin(logits, labels) / (places[:, -1] - places[:, -3] + _TINY)


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Difference of logits ratio towards a class, [N]; it rises as `targets` overtakes `labels`.

    Croce and Hein, 2020 (https://arxiv.org/abs/2003.01690), eq. 7.

    Args:
      logits: float [N, K], of 4 or more classes.
      labels, targets: whole numbers [N].

    Raises:
      ValueError: fewer classes, or what `margin` refuses.
    """
    logits = _checked_logits(logits, 4, "targeted_dlr")
    labels = check_labels(labels, len(logits), logits.shape[1])
    targets = check_labels(targets, len(logits), logits.shape[1], name="targets")
    places = jnp.sort(logits, axis=-1)
    scale = places[:, -1] - (places[:, -3] + places[:, -4]) / 2 + _TINY
    return (_at(logits, targets) - _at(logits, labels)) / scale


def check_labels(
    labels: jax.Array | np.ndarray,
    num_examples: int | None = None,
    num_classes: int | None = None,
    *,
    name: str = "labels",
    or_else: str = "",
) -> jax.Array:
    """The labels as an array, if they are one whole number for each example.

    Args:
      labels: integers [N] of any width.
      num_examples: N, or None for any.
      num_classes: K, or None for any; labels that are known when this is traced have to be 0 to K - 1.
      name: what an error calls them.
      or_else: what else an error says was expected.

    Raises:
      ValueError: they are anything else, such as [N, 1], one-hot, float or bool.
    """
    length = "N" if num_examples is None else num_examples
    whole = is_array(labels) and labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer)
    if not whole or num_examples not in (None, len(labels)):
        expected = f"whole numbers [{length}], one class for each image{or_else}"
        raise ValueError(f"{name} are {in_words(labels)}; expected {expected}.{_hint(labels, name)}")
    values = known_values(labels)
    if num_classes is not None and values is not None and values.size:
        if values.min() < 0 or values.max() >= num_classes:
            found, expected = f"{values.min()} to {values.max()}", f"0 to {num_classes - 1}"
            raise ValueError(f"{name} are {found}; expected {expected}: there are {num_classes} logits.")
    return jnp.asarray(labels)


def _checked_logits(logits: jax.Array, least: int, loss: str) -> jax.Array:
    if not is_array(logits) or logits.ndim != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits are {in_words(logits)}; expected float [N, K], one number for each class.")
    if logits.shape[1] < least:
        one = " A single logit z of two classes becomes jnp.concatenate([jnp.zeros_like(z), z], axis=1)."
        raise ValueError(
            f"logits have {logits.shape[1]} classes; expected {least} or more for the loss {loss}."
            f"{one if logits.shape[1] == 1 and least == 2 else ''}"
        )
    return at_least_float32(logits)


def _are_distributions(targets: Any) -> bool:
    return is_array(targets) and targets.ndim == 2 and jnp.issubdtype(targets.dtype, jnp.floating)


def _checked_distributions(targets: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if targets.shape != shape:
        raise ValueError(
            f"targets are {in_words(targets)}; expected one number for each image and class, {list(shape)}, "
            f"or whole labels [{shape[0]}].{_hint(targets, 'targets')}"
        )
    values = known_values(targets)
    if values is not None and values.size:
        sums = values.astype(np.float64).sum(1)
        if not (values >= 0).all() or not (np.abs(sums - 1) <= _SUM_ROUNDING).all():
            found = f"of {values.min():.4g} and more, in rows of sum {sums.min():.4g} to {sums.max():.4g}"
            raise ValueError(f"targets are {found}; expected 0 and more, and rows of sum 1.")
    return targets


def _hint(labels: Any, name: str) -> str:
    if not is_array(labels) or labels.ndim != 2:
        return ""
    return f" Use {name}[:, 0]." if labels.shape[1] == 1 else f" Use {name}.argmax(-1) if they are one-hot."


def _at(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logit of each label. A sum under a mask: its gradient is no scatter, which is slow on a CPU."""
    return jnp.sum(jnp.where(_is(labels, logits), logits, 0), axis=-1)


def _largest_but(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.max(jnp.where(_is(labels, logits), -jnp.inf, logits), axis=-1)


def _is(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """Which logit is that of the label, bool [N, K]; a byte could not count more classes than it has values."""
    labels = labels.astype(jnp.int32) if labels.dtype.itemsize < 4 else labels
    return labels[:, None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)[None]
