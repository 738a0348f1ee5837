"""Robust accuracy over the radius."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax.attacks import ThreatModel, pgd
from rap_jax.attacks.checks import LogitsFn
from rap_jax.attacks.losses import cross_entropy, margin

NUM_STEPS = 50

OnRadius = Callable[[int, int], None]


class SweepPoint(NamedTuple):
    """PGD at one radius."""

    epsilon: float
    accuracy: float  # share of the images that is right under this and all smaller radii


def epsilon_sweep(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    threat_model: ThreatModel,
    key: jax.Array,
    on_radius: OnRadius = lambda done, total: None,
) -> list[SweepPoint]:
    """PGD with 50 steps on the margin loss, at radii from 0 to one at which everything can be changed.

    The radius of the threat model is one of them, and the others are shares of it. An example that is broken at one
    radius counts as broken at all larger ones. `on_radius` is called with (radii done, radii in all) after each of
    them, and may raise to stop.
    """
    norm, epsilon = threat_model.norm, float(threat_model.epsilon)
    largest = 1.0 if norm == "linf" else float(np.sqrt(images[0].size))
    wanted = {0.0, *(epsilon * share for share in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)), largest}
    radii = sorted(radius for radius in wanted if radius <= max(largest, epsilon))
    right, sweep = np.asarray(logits_fn(images)).argmax(-1) == labels, list[SweepPoint]()
    attacked = still_right(logits_fn, num_steps=NUM_STEPS)
    for radius in radii:
        if radius > 0 and right.any():  # else the answer is known
            step_size = jnp.float32(2.5 * radius / NUM_STEPS)
            right &= np.asarray(attacked(images, labels, ThreatModel(norm, radius), step_size, key))
        sweep.append(SweepPoint(float(radius), float(right.mean())))
        on_radius(len(sweep), len(radii))
    return sweep


def still_right(logits_fn: LogitsFn, *, num_steps: int) -> Callable[..., jax.Array]:
    """(images, labels, threat_model, step_size, key) -> which images stay right, bool [N], after PGD or FGSM.

    PGD begins at a random point and follows the margin, whose gradient does not vanish; FGSM, for one step, follows
    the cross-entropy from the image. The compiled program lives no longer than the function.
    """
    loss = cross_entropy if num_steps == 1 else margin

    @jax.jit
    def still_right(
        images: jax.Array, labels: jax.Array, threat_model: ThreatModel, step_size: jax.Array, key: jax.Array
    ) -> jax.Array:
        found = pgd(
            logits_fn,
            images,
            labels,
            threat_model=threat_model,
            key=key,
            step_size=step_size,
            num_steps=num_steps,
            random_start=num_steps > 1,
            loss=loss,
        )
        return logits_fn(found.adversarial).argmax(-1).astype(labels.dtype) == labels

    return still_right
