"""C&W L2 against the closed form of linear classifiers, an independent NumPy version, and by its properties."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax.attacks import AttackResult, ThreatModel, cw_l2
from rap_jax.attacks.losses import margin

NUM_PIXELS, NUM_CLASSES = 12, 3
WEIGHTS = np.random.default_rng(0).normal(size=(NUM_PIXELS, NUM_CLASSES)).astype(np.float32)
FULL: dict[str, Any] = {"num_steps": 300, "num_search_steps": 9, "learning_rate": 0.01, "initial_c": 1e-2}
SHORT: dict[str, Any] = {"num_steps": 20, "num_search_steps": 4, "learning_rate": 0.05, "initial_c": 0.1}


@pytest.fixture(name="images")
def make_images() -> jax.Array:
    return 0.3 + 0.4 * jax.random.uniform(jax.random.key(0), (10, NUM_PIXELS))


def linear(images: jax.Array) -> jax.Array:
    return images @ WEIGHTS


def bent(images: jax.Array) -> jax.Array:
    return jnp.tanh(3 * (images - 0.5)) @ WEIGHTS


def distances(found: AttackResult, images: jax.Array) -> np.ndarray:
    """Of the adversarial images from the clean ones, infinite where there is none."""
    return np.where(found.broken, np.linalg.norm(found.adversarial - images, axis=1), np.inf)


def labels_of(images: jax.Array) -> jax.Array:
    return linear(images).argmax(-1)


def distance_to_plane(images: jax.Array, labels: jax.Array, others: jax.Array, confidence: float) -> np.ndarray:
    """How far it is, without the box, to where `others` lead by the confidence: (z_y - z_j + k) / ||w_y - w_j||."""
    logits, rows = np.asarray(linear(images), np.float64), np.arange(len(images))
    gap = logits[rows, labels] - logits[rows, others] + confidence
    return gap / np.linalg.norm(WEIGHTS.T[np.asarray(labels)] - WEIGHTS.T[np.asarray(others)], axis=1)


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_nearest_image_of_a_linear_classifier(images: jax.Array, confidence: float) -> None:
    two = lambda x: linear(x)[:, :2]
    labels = two(images).argmax(-1)
    found = jax.jit(lambda x: cw_l2(two, x, labels, confidence=confidence, **FULL))(images)
    expected = distance_to_plane(images, labels, 1 - labels, confidence)
    assert found.broken.all() and (margin(two(found.adversarial), labels) > confidence).all()
    assert (distances(found, images) > 0.9999 * expected).all()
    np.testing.assert_allclose(distances(found, images), expected, rtol=0.03)


def test_nearest_image_of_a_target(images: jax.Array) -> None:
    labels = labels_of(images)
    targets = (labels + 1) % NUM_CLASSES
    found = cw_l2(linear, images, targets, targeted=True, confidence=0.1, **FULL)
    assert found.broken.all()
    np.testing.assert_array_equal(labels_of(found.adversarial), targets)
    assert (margin(linear(found.adversarial), targets) < -0.1).all()  # no other class comes within the confidence
    least = distance_to_plane(images, labels, targets, 0.1)
    assert (distances(found, images) > 0.9999 * least).all()
    assert np.median(distances(found, images) / least) < 1.05  # more only where the third class is in the way


def numpy_cw_l2(image: np.ndarray, label: int, confidence: float) -> tuple[np.ndarray, float]:
    """Section 6.A for the linear classifier and one example, in float64."""
    best, distance = image, np.inf
    c, lower, upper = SHORT["initial_c"], 0.0, np.inf
    for _ in range(SHORT["num_search_steps"]):
        w, m, v, success = np.arctanh((2 * image - 1) * 0.999999), 0.0, 0.0, False
        for step in range(1, SHORT["num_steps"] + 1):
            x = (np.tanh(w) + 1) / 2
            logits = x @ WEIGHTS.astype(np.float64)
            other = np.argmax(np.where(np.arange(NUM_CLASSES) == label, -np.inf, logits))
            missing = logits[label] - logits[other] + confidence
            if missing < 0:
                success = True
                if np.linalg.norm(x - image) < distance:
                    best, distance = x, np.linalg.norm(x - image)
            pull = c * (WEIGHTS[:, label] - WEIGHTS[:, other]) if missing > 0 else 0.0
            gradient = (2 * (x - image) + pull) * (1 - np.tanh(w) ** 2) / 2
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            w = w - SHORT["learning_rate"] * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        if success:
            upper = min(upper, c)
        else:
            lower = max(lower, c)
        c = (lower + upper) / 2 if np.isfinite(upper) else 10 * c
    return best, distance


def test_equals_numpy(images: jax.Array) -> None:
    labels = labels_of(images)
    found = cw_l2(linear, images, labels, confidence=0.2, **SHORT)
    assert 0 < found.broken.sum()
    for i, image in enumerate(np.asarray(images, np.float64)):
        adversarial, distance = numpy_cw_l2(image, int(labels[i]), 0.2)
        assert bool(found.broken[i]) == np.isfinite(distance)
        np.testing.assert_allclose(distances(found, images)[i], distance, rtol=2e-3)
        np.testing.assert_allclose(found.adversarial[i], adversarial, atol=1e-3)


def test_reports_what_it_returns(images: jax.Array) -> None:
    edge = jnp.round(images)  # black and white: the box is in the way
    labels = bent(edge).argmax(-1)
    found = cw_l2(bent, edge, labels, **FULL)
    assert found.broken.any()
    assert 0 <= found.adversarial.min() and found.adversarial.max() <= 1
    assert found.adversarial.shape == edge.shape and found.adversarial.dtype == edge.dtype
    wrong = bent(found.adversarial).argmax(-1) != labels
    np.testing.assert_array_equal(wrong, found.broken)
    np.testing.assert_array_equal(found.adversarial[~found.broken], edge[~found.broken])


def test_a_threat_model_decides_which_are_near_enough(images: jax.Array) -> None:
    labels = bent(images).argmax(-1)
    anywhere = cw_l2(bent, images, labels, **SHORT)
    lengths = distances(anywhere, images)
    threat_model = ThreatModel("l2", float(np.median(lengths[np.isfinite(lengths)])))
    found = cw_l2(bent, images, labels, threat_model=threat_model, **SHORT)
    np.testing.assert_allclose(distances(found, images), np.where(found.broken, lengths, np.inf))
    assert 0 < found.broken.sum() < anywhere.broken.sum()
    assert (lengths[np.asarray(found.broken)].max() <= threat_model.epsilon * (1 + 1e-6)).all()
    np.testing.assert_array_equal(found.adversarial[~found.broken], images[~found.broken])
    with pytest.raises(ValueError, match="norm is 'linf'; expected l2"):
        cw_l2(bent, images, labels, threat_model=ThreatModel("linf", 0.1), **SHORT)


def test_misclassified_images_stay(images: jax.Array) -> None:
    labels = labels_of(images).at[:5].add(1) % NUM_CLASSES
    found = cw_l2(linear, images, labels, **SHORT)
    np.testing.assert_array_equal(found.adversarial[:5], images[:5])
    assert found.broken[:5].all() and (distances(found, images)[5:] > 0).all()


def test_nothing_found(images: jax.Array) -> None:
    always_first = lambda x: jnp.array([[1.0, 0.0]]) + 0 * x[:, :2]
    found = cw_l2(always_first, images, jnp.zeros(len(images), int), **SHORT)
    assert not found.broken.any()
    np.testing.assert_array_equal(found.adversarial, images)


def test_more_search_steps_are_never_farther(images: jax.Array) -> None:
    labels = bent(images).argmax(-1)
    found = [cw_l2(bent, images, labels, **SHORT | {"num_search_steps": n}) for n in (1, 3, 6)]
    one, three, six = (distances(result, images) for result in found)
    assert (three <= one).all() and (six <= three).all() and (six < one).any()


def test_examples_are_independent(images: jax.Array) -> None:
    labels = bent(images).argmax(-1)
    attack = jax.jit(lambda x, labels: cw_l2(bent, x, labels, **SHORT))
    together = attack(images, labels)
    for i in range(3):
        alone = attack(images[i : i + 1], labels[i : i + 1])
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], together)
        np.testing.assert_allclose(distances(alone, images[i : i + 1]), distances(one, images[i : i + 1]), rtol=1e-3)
    backwards = AttackResult(*(array[::-1] for array in attack(images[::-1], labels[::-1])))
    np.testing.assert_allclose(backwards.adversarial, together.adversarial, atol=1e-4)


def test_no_gradient_flows_through(images: jax.Array) -> None:
    total = lambda x: cw_l2(bent, x, labels_of(images), **SHORT).adversarial.sum()
    np.testing.assert_array_equal(jax.grad(total)(images), jnp.zeros_like(images))


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"confidence": -1.0}, "confidence is -1.0; expected one finite number of 0 or more"),
        ({"num_steps": 0}, "num_steps is 0; expected at least 1 step"),
        ({"num_search_steps": 0}, "num_search_steps is 0; expected at least 1 step"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected more than 0"),
        ({"initial_c": -2.0}, "initial_c is -2.0; expected one finite number"),
    ],
)
def test_refuses_settings(images: jax.Array, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cw_l2(linear, images, labels_of(images), **SHORT | bad)


def test_refuses_images(images: jax.Array) -> None:
    labels = labels_of(images)
    with pytest.raises(ValueError, match="bfloat16\\[10, 12\\], too coarse"):
        cw_l2(linear, images.astype(jnp.bfloat16), labels, **SHORT)
    with pytest.raises(ValueError, match="uint8"):
        cw_l2(linear, images.astype(jnp.uint8), labels, **SHORT)
    with pytest.raises(ValueError, match=r"labels are int32\[3\]"):
        cw_l2(linear, images, labels[:3], **SHORT)


def test_logits_that_are_nan_on_the_way_are_warned_of(images: jax.Array) -> None:
    away = lambda x: (jnp.abs(x - images).max(1) > 0.02)[:, None]  # the gradient of the logits there is 0
    network = lambda x: jnp.where(away(x), jnp.nan, linear(x))
    with pytest.warns(RuntimeWarning, match="NaN at [1-9][0-9]* of 10 images"):
        found = cw_l2(network, images, labels_of(images), **SHORT | {"initial_c": 1.0})
    assert not (found.broken & jnp.isnan(network(found.adversarial)).any(1)).any()
