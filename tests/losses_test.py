"""Losses against NumPy, and per example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rap_jax.losses import cross_entropy, dlr, margin, smooth_labels, targeted_dlr

pytestmark = pytest.mark.usefixtures("optimised")

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


TARGETS = np.array([1, 2, 3, 0, 1, 2], np.int32)


def numpy_margin(logits: np.ndarray, label: int) -> float:
    return max(z for i, z in enumerate(logits) if i != label) - logits[label]


def test_margin_and_dlr_by_definition() -> None:
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    margins = np.array([numpy_margin(z, y) for z, y in zip(LOGITS, LABELS, strict=True)])
    places = -np.sort(-LOGITS, axis=1)
    np.testing.assert_allclose(margin(logits, labels), margins, rtol=1e-6)
    np.testing.assert_allclose(dlr(logits, labels), margins / (places[:, 0] - places[:, 2]), rtol=1e-5)
    rows = np.arange(len(LABELS))
    scale = places[:, 0] - (places[:, 2] + places[:, 3]) / 2
    towards = (LOGITS[rows, TARGETS] - LOGITS[rows, LABELS]) / scale
    np.testing.assert_allclose(targeted_dlr(logits, labels, jnp.asarray(TARGETS)), towards, rtol=1e-5)


def test_dlr_does_not_change_under_shift_and_scale() -> None:
    logits, labels, targets = jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(TARGETS)
    for moved in (logits + 5, 3 * logits):
        np.testing.assert_allclose(dlr(moved, labels), dlr(logits, labels), rtol=1e-4)
        found = targeted_dlr(moved, labels, targets)
        np.testing.assert_allclose(found, targeted_dlr(logits, labels, targets), rtol=1e-4)


def test_gradients_agree_with_finite_differences() -> None:
    labels, targets = jnp.asarray(LABELS), jnp.asarray(TARGETS)
    with jax.enable_x64(True):
        for loss in (margin, dlr, lambda z, y: targeted_dlr(z, y, targets)):
            z = jnp.asarray(LOGITS, jnp.float64)
            check_grads(lambda z, loss=loss: loss(z, labels).sum(), (z,), order=1, modes=["rev"])


def test_too_few_classes() -> None:
    with pytest.raises(ValueError, match="logits have 2 classes; expected 3 or more for the loss dlr"):
        dlr(jnp.zeros((1, 2)), jnp.zeros(1, int))
    with pytest.raises(ValueError, match="logits have 3 classes; expected 4 or more for the loss targeted_dlr"):
        targeted_dlr(jnp.zeros((1, 3)), jnp.zeros(1, int), jnp.ones(1, int))
