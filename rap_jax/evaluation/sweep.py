"""Robust accuracy over the radius."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax.attacks import pgd
from rap_jax.attacks.checks import LogitsFn
from rap_jax.attacks.losses import cross_entropy, margin

NUM_STEPS = 50

OnRadius = Callable[[int, int], None]


def ignore_radius(done: int, total: int) -> None:
    """The `on_radius` that does nothing."""


class SweepPoint(NamedTuple):
    """PGD at one radius. Attributes: epsilon; accuracy: share that is right under this and all smaller radii."""

    epsilon: float
    accuracy: float


def epsilon_sweep(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    norm: str,
    key: jax.Array,
    on_radius: OnRadius = ignore_radius,
) -> list[SweepPoint]:
    """PGD with 50 steps on the margin loss, at radii from 0 to one at which everything can be changed.

    An example that is broken at one radius counts as broken at all larger ones. `on_radius` is called
    with (radii done, radii in all) after each of them, and may raise to stop.
    """
    largest = 1.0 if norm == "linf" else float(np.sqrt(images[0].size))
    wanted = {0.0, *(epsilon * share for share in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)), largest}
    radii = sorted(radius for radius in wanted if radius <= max(largest, epsilon))
    right, sweep = np.ones(len(images), bool), list[SweepPoint]()
    attacked = still_right(logits_fn, norm=norm, num_steps=NUM_STEPS)
    for radius in radii:
        step = jnp.float32(2.5 * radius / NUM_STEPS)
        right &= np.asarray(attacked(images, labels, jnp.float32(radius), step, key))
        sweep.append(SweepPoint(float(radius), float(right.mean())))
        on_radius(len(sweep), len(radii))
    return sweep


def still_right(logits_fn: LogitsFn, *, norm: str, num_steps: int) -> Callable[..., jax.Array]:
    """(images, labels, epsilon, step_size, key) -> which images are right after PGD, or one step of FGSM: bool [N].

    PGD begins at a random point and follows the margin, whose gradient does not vanish; one step follows the
    cross-entropy from the image, as FGSM does. The compiled program lives no longer than the function.
    """
    loss = cross_entropy if num_steps == 1 else margin

    @jax.jit
    def still_right(
        images: jax.Array, labels: jax.Array, epsilon: jax.Array, step_size: jax.Array, key: jax.Array
    ) -> jax.Array:
        adversarial = pgd(
            key,
            lambda x: loss(logits_fn(x), labels),
            images,
            epsilon=epsilon,
            step_size=step_size,
            num_steps=num_steps,
            norm=norm,
            random_start=num_steps > 1,
        )
        return logits_fn(adversarial).argmax(-1).astype(labels.dtype) == labels

    return still_right
