"""Whether the gradients of a network lead an attack anywhere."""

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax.attacks import norm_of
from rap_jax.attacks.checks import LogitsFn
from rap_jax.diagnostics.finding import Finding
from rap_jax.diagnostics.sweep import NUM_STEPS, SweepPoint, still_right
from rap_jax.losses import cross_entropy

# Shares of examples; what is below them is chance or rounding.
_FEW, _ODD = 0.01, 0.02


def check_gradients(zero_gradients: float) -> list[Finding]:
    """Gradients that are zero: an attack cannot follow them."""
    if zero_gradients <= _FEW:
        return []
    return [
        Finding(
            "zero gradients",
            f"At {zero_gradients:.1%} of the right images the gradient of the cross-entropy is exactly zero, so "
            f"attacks that follow it do not move. If outputs are saturated, APGD-DLR and FAB still find a way; if an "
            f"operation has no gradient (rounding, argmax, stop_gradient), only Square and transferred images do. "
            f"Take it out of the network, or replace its gradient, and evaluate again.",
        )
    ]


def without_gradient(reason: str) -> list[Finding]:
    """A network that has no gradient, for this `reason`."""
    return [
        Finding(
            "no gradient",
            f"The network has no gradient ({reason}), so nothing could be looked for that shows in gradients, and no "
            f"attack can follow them. Square and transferred images alone are a weak evaluation: the true robust "
            f"accuracy is likely lower. Write the network in JAX, or give it a gradient by `jax.custom_vjp`.",
        )
    ]


def check_one_step(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    sweep: list[SweepPoint],
    *,
    epsilon: float,
    norm: str,
    key: jax.Array,
) -> list[Finding]:
    """One large step that breaks more than many small ones."""
    radius = jnp.float32(epsilon)
    attacked = still_right(logits_fn, norm=norm, num_steps=1)
    one_step = float(attacked(images, labels, radius, radius, key).mean())
    many_steps = next(point.accuracy for point in sweep if point.epsilon == epsilon)
    if one_step >= many_steps - _ODD:
        return []
    return [
        Finding(
            "one step beats many",
            f"One step leaves {one_step:.1%} of the images right, {NUM_STEPS} steps leave {many_steps:.1%}: the "
            f"gradients are masked, and PGD is not to be trusted. Go by AutoAttack, and raise steps and restarts.",
        )
    ]


def check_sweep(sweep: list[SweepPoint]) -> list[Finding]:
    """An attack that may change everything and does not break everything."""
    last = sweep[-1]
    if last.accuracy <= _FEW:
        return []
    return [
        Finding(
            "unbroken at any radius",
            f"With a radius of {last.epsilon:.3g}, at which every image can be turned into any other, PGD still leaves "
            f"{last.accuracy:.1%} of the images right; expected 0%. The attack cannot find its way: the gradients are "
            f"masked, or the network answers with one class.",
        )
    ]


def share_without_gradient(logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, right: np.ndarray) -> float:
    """Share of the images that are `right`, bool [N], at which the cross-entropy has a gradient of exactly zero."""
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(logits_fn(x), jnp.asarray(labels)).sum()))(images)
    zero = np.asarray(norm_of("linf").size(gradient)) == 0
    return float(zero[right].mean()) if right.any() else 0.0
