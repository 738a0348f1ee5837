"""PGD on the margin, the C&W attack in L-infinity of the paper's Table C1: `pgd` with another loss."""

import jax
import numpy as np
import pytest

from rap_jax.attacks import ThreatModel, pgd
from rap_jax.attacks.losses import cross_entropy, margin
from rap_jax.attacks.pgd import Loss

EPSILON = 0.15
WEIGHTS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)


@pytest.fixture(name="images")
def make_images() -> jax.Array:
    return 0.2 + 0.6 * jax.random.uniform(jax.random.key(0), (40, 30))  # no pixel is stopped by the box


def attacked(images: jax.Array, loss: Loss, scale: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """The images that PGD finds for a linear classifier, and their labels, which are right without it."""
    logits_fn = lambda x: scale * (x @ WEIGHTS)
    labels = logits_fn(images).argmax(-1)
    settings = {"threat_model": ThreatModel("linf", EPSILON), "step_size": 0.02, "num_steps": 20, "loss": loss}
    attack = jax.jit(lambda key: pgd(logits_fn, images, labels, key=key, **settings))
    return attack(jax.random.key(1)).adversarial, labels


def test_breaks_whom_a_linear_classifier_cannot_save(images: jax.Array) -> None:
    """In the ball class j gains at most epsilon ||w_j - w_y||_1 over class y, so it is known who can be broken."""
    found, labels = attacked(images, margin)
    logits = np.asarray(images) @ WEIGHTS
    y = np.asarray(labels)
    gains = EPSILON * np.abs(WEIGHTS.T[None] - WEIGHTS.T[y][:, None]).sum(-1)
    leads = logits + gains - logits[np.arange(len(y)), y][:, None]
    leads[np.arange(len(y)), y] = -np.inf
    breakable = leads.max(1) > 0
    assert 0.2 < breakable.mean() < 0.8  # else there is nothing to tell apart
    broken = np.asarray((found @ WEIGHTS).argmax(-1) != labels)
    assert not (broken & ~breakable).any()
    assert broken[breakable].mean() > 0.9  # the best wrong class at the start need not be the one that can win


def test_sees_through_saturated_logits(images: jax.Array) -> None:
    """Logits a thousand times larger: the cross-entropy of a right image is 0 in float32, and so is its gradient."""
    broken = {}
    for loss in (margin, cross_entropy):
        found, labels = attacked(images, loss, scale=1000.0)
        broken[loss] = float(((found @ WEIGHTS).argmax(-1) != labels).mean())
    assert broken[margin] > 2 * broken[cross_entropy]
