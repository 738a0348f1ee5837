"""Losses against NumPy, and per example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax.losses import cross_entropy, smooth_labels

LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 3
LABELS = np.array([0, 1, 2, 3, 3, 0], np.int32)
LOG_SOFTMAX = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(1, keepdims=True))


def test_cross_entropy_of_labels() -> None:
    found = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, -LOG_SOFTMAX[np.arange(6), LABELS], rtol=1e-5)


def test_cross_entropy_of_distributions() -> None:
    targets = np.random.default_rng(1).dirichlet(np.ones(4), 6).astype(np.float32)
    found = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(targets))
    np.testing.assert_allclose(found, -(targets * LOG_SOFTMAX).sum(1), rtol=1e-5)
    one_hot = cross_entropy(jnp.asarray(LOGITS), jax.nn.one_hot(LABELS, 4))
    np.testing.assert_allclose(one_hot, cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS)), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_smoothing_spreads_a_share_over_all_classes(smoothing: float) -> None:
    found = np.asarray(smooth_labels(jnp.asarray(LABELS), smoothing, 4))
    assert found.shape == (6, 4)
    np.testing.assert_allclose(found[np.arange(6), LABELS], 1 - smoothing + smoothing / 4, rtol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    assert np.sort(found, 1)[:, :3] == pytest.approx(smoothing / 4)
    mixed = jnp.array([[0.5, 0.5, 0.0, 0.0]])
    expected = (1 - smoothing) * np.array([[0.5, 0.5, 0, 0]]) + smoothing / 4
    np.testing.assert_allclose(smooth_labels(mixed, smoothing, 4), expected, rtol=1e-6)


def test_no_smoothing_leaves_the_targets() -> None:
    labels = jnp.asarray(LABELS)
    assert smooth_labels(labels, 0.0, 4) is labels
