"""All looks at a network in turn."""

from typing import NamedTuple

import jax
import numpy as np

from rap_jax.attacks.checks import LogitsFn
from rap_jax.diagnostics.answers import (
    check_collapse,
    check_images,
    check_neighbours,
    check_probabilities,
    check_randomized,
)
from rap_jax.diagnostics.finding import Finding
from rap_jax.diagnostics.gradients import (
    check_gradients,
    check_one_step,
    check_sweep,
    share_without_gradient,
    without_gradient,
)
from rap_jax.diagnostics.sweep import OnRadius, SweepPoint, epsilon_sweep, ignore_radius
from rap_jax.traced import trace

MOST_IMAGES = 200


class Diagnosis(NamedTuple):
    """What `diagnose` saw.

    Attributes:
      findings: what is wrong; empty where nothing was.
      sweep: robust accuracy by radius, from 0 up; at 0 alone for a network without any gradient.
      zero_gradients: share of right examples at which the cross-entropy has no gradient at all.
      predicted: share of each class among the answers to clean images, [K].
    """

    findings: list[Finding]
    sweep: list[SweepPoint]
    zero_gradients: float
    predicted: np.ndarray


def diagnose(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    norm: str = "linf",
    key: jax.Array,
    on_radius: OnRadius = ignore_radius,
) -> Diagnosis:
    """Looks at the network on the first 200 images.

    Args:
      logits_fn: images [N, H, W, C] -> logits [N, K], in evaluation mode.
      images: float in [0, 1], [N, H, W, C].
      labels: int [N].
      epsilon: radius of the threat model.
      norm: `linf` or `l2`.
      key: typed PRNG key, of the sweep's random starts.
      on_radius: see `epsilon_sweep`.
    """
    images, labels = np.asarray(images[:MOST_IMAGES], np.float32), np.asarray(labels[:MOST_IMAGES])
    logits_fn = jax.jit(logits_fn)
    logits = np.asarray(logits_fn(images))
    right = logits.argmax(-1) == labels
    predicted = np.bincount(logits.argmax(-1), minlength=logits.shape[-1]) / len(images)
    findings = [
        *check_images(images),
        *check_probabilities(logits),
        # Of a network that answers otherwise each time nothing can be said about neighbours.
        *(check_randomized(logits_fn, images, logits) or check_neighbours(logits_fn, images, logits)),
        *check_collapse(predicted, labels),
    ]
    no_gradient = trace(logits_fn, images).no_gradient
    if no_gradient:
        findings += without_gradient(no_gradient)
        return Diagnosis(findings, [SweepPoint(0.0, float(right.mean()))], 1.0, predicted)
    zero = share_without_gradient(logits_fn, images, labels, right)
    sweep = epsilon_sweep(logits_fn, images, labels, epsilon=epsilon, norm=norm, key=key, on_radius=on_radius)
    findings += [
        *check_gradients(zero),
        *check_one_step(logits_fn, images, labels, sweep, epsilon=epsilon, norm=norm, key=key),
        *check_sweep(sweep),
    ]
    return Diagnosis(findings, sweep, zero, predicted)
