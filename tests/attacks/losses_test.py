"""Losses against NumPy, and per example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rap_jax.attacks.losses import (
    cross_entropy,
    dlr,
    kl_divergence,
    margin,
    probability_margin,
    smooth_labels,
    targeted_dlr,
)

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


def test_divergence_by_definition() -> None:
    given = np.random.default_rng(1).dirichlet(np.ones(4), 6)
    found = kl_divergence(jnp.asarray(LOGITS), jnp.asarray(given, jnp.float32))
    np.testing.assert_allclose(found, (given * (np.log(given) - LOG_SOFTMAX)).sum(1), rtol=1e-4)
    np.testing.assert_allclose(kl_divergence(jnp.asarray(LOGITS), jnp.exp(LOG_SOFTMAX)), 0, atol=1e-6)
    certain = kl_divergence(jnp.asarray(LOGITS), jax.nn.one_hot(LABELS, 4))  # 0 log 0 is 0
    np.testing.assert_allclose(certain, cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"probabilities are int32\[6\]; expected float \[N, K\]"):
        kl_divergence(jnp.asarray(LOGITS), jnp.asarray(LABELS))


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


def test_probability_margin_by_definition() -> None:
    """The largest probability of a wrong class less that of the right one; the gradient as section 3 of the paper."""
    found = probability_margin(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    probabilities = np.exp(LOG_SOFTMAX)
    expected = [numpy_margin(p, y) for p, y in zip(probabilities, LABELS, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    gradient = jax.grad(lambda z: probability_margin(z, jnp.asarray(LABELS)).sum())(jnp.asarray(LOGITS))
    for p, y, value, row in zip(probabilities, LABELS, expected, gradient, strict=True):
        largest = max((i for i in range(4) if i != y), key=lambda i: p[i])
        one_hot = np.eye(4)
        np.testing.assert_allclose(row, p[largest] * one_hot[largest] - p[y] * one_hot[y] - value * p, atol=1e-6)


def test_dlr_does_not_change_under_shift_and_scale() -> None:
    logits, labels, targets = jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(TARGETS)
    for moved in (logits + 5, 3 * logits):
        np.testing.assert_allclose(dlr(moved, labels), dlr(logits, labels), rtol=1e-4)
        found = targeted_dlr(moved, labels, targets)
        np.testing.assert_allclose(found, targeted_dlr(logits, labels, targets), rtol=1e-4)


def test_gradients_agree_with_finite_differences() -> None:
    labels, targets = jnp.asarray(LABELS), jnp.asarray(TARGETS)
    with jax.enable_x64(True):
        for loss in (margin, dlr, probability_margin, lambda z, y: targeted_dlr(z, y, targets)):
            z = jnp.asarray(LOGITS, jnp.float64)
            check_grads(lambda z, loss=loss: loss(z, labels).sum(), (z,), order=1, modes=["rev"])


def test_too_few_classes() -> None:
    with pytest.raises(ValueError, match="logits have 2 classes; expected 3 or more for the loss dlr"):
        dlr(jnp.zeros((1, 2)), jnp.zeros(1, int))
    with pytest.raises(ValueError, match="logits have 3 classes; expected 4 or more for the loss targeted_dlr"):
        targeted_dlr(jnp.zeros((1, 3)), jnp.zeros(1, int), jnp.ones(1, int))


LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr, "probability_margin": probability_margin}
WRONG_LABELS = {
    "[N, 1]": LABELS[:, None],
    "[1]": LABELS[:1],
    "[]": LABELS[0],
    "[N + 1]": np.append(LABELS, 0),
    "float": LABELS.astype(np.float32),
    "bool": LABELS > 0,
    "a list": LABELS.tolist(),
}


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("wrong", WRONG_LABELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_labels_that_are_not_one_for_each_image_are_refused(loss: str, wrong: str, traced: bool) -> None:
    function = jax.jit(LOSSES[loss]) if traced and wrong != "a list" else LOSSES[loss]
    with pytest.raises(ValueError, match=r"labels are .*; expected whole numbers \[6\]"):
        function(jnp.asarray(LOGITS), WRONG_LABELS[wrong])


def test_one_hot_labels_are_for_the_cross_entropy_alone() -> None:
    for loss in (margin, dlr):
        with pytest.raises(ValueError, match=r"float32\[6, 4\]; .* Use labels.argmax\(-1\) if they are one-hot"):
            loss(jnp.asarray(LOGITS), jax.nn.one_hot(LABELS, 4))
    with pytest.raises(ValueError, match=r"targets are float32\[6, 5\]; expected one number for each image and class"):
        cross_entropy(jnp.asarray(LOGITS), jax.nn.one_hot(LABELS, 5))
    with pytest.raises(ValueError, match="rows of sum 2 to 2; expected 0 and more, and rows of sum 1"):
        cross_entropy(jnp.asarray(LOGITS), 2 * jax.nn.one_hot(LABELS, 4))


@pytest.mark.parametrize("label", [-1, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_labels_that_are_no_class_are_refused_where_they_are_known(loss: str, label: int) -> None:
    labels = np.where(LABELS == 3, label, LABELS)
    with pytest.raises(ValueError, match="expected 0 to 3: there are 4 logits"):
        jax.jit(lambda z: LOSSES[loss](z, labels))(LOGITS)


@pytest.mark.parametrize("shape", [(), (6,), (6, 1), (6, 2, 4)])
@pytest.mark.parametrize("loss", LOSSES)
def test_logits_that_are_not_a_row_of_classes_are_refused(loss: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits (are|have) .*; expected"):
        LOSSES[loss](jnp.zeros(shape), jnp.zeros(6, jnp.int32))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32"])
@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_any_integer_labels_and_any_float_logits(loss: str, narrow: str, dtype: str) -> None:
    logits = jnp.asarray(LOGITS, narrow)
    with jax.numpy_dtype_promotion("strict"):
        found = LOSSES[loss](logits, LABELS.astype(dtype))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, LOSSES[loss](logits.astype(jnp.float32), jnp.asarray(LABELS)))


def test_a_byte_counts_no_class_twice() -> None:
    logits = jnp.arange(300.0)[None]
    np.testing.assert_array_equal(margin(logits, np.array([44], np.uint8)), 299 - 44)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_of_more_than_all_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing is"):
        smooth_labels(jnp.asarray(LABELS), smoothing, 4)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from(["bool", "uint8", "int32", "float16", "float32"]),
    num_examples=st.integers(1, 5),
    loss=st.sampled_from(sorted(LOSSES)),
)
def test_a_loss_is_one_number_for_each_image_or_refused(
    shape: list[int], dtype: str, num_examples: int, loss: str
) -> None:
    logits, labels = jnp.zeros((num_examples, 4)), jax.ShapeDtypeStruct(tuple(shape), dtype)
    whole = dtype in ("uint8", "int32") and shape == [num_examples]
    soft = loss == "cross_entropy" and dtype.startswith("float") and shape == [num_examples, 4]
    if whole or soft:
        assert jax.eval_shape(LOSSES[loss], logits, labels).shape == (num_examples,)
    else:
        with pytest.raises(ValueError, match=r"(labels|targets) are .*; expected"):
            jax.eval_shape(LOSSES[loss], logits, labels)


def test_a_number_of_classes_that_is_not_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes is 4.0; expected a whole number"):
        smooth_labels(jnp.asarray(LABELS), 0.1, 4.0)  # type: ignore[arg-type]
