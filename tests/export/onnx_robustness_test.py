"""What is measured of a file that has no gradient."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_run import EPSILON, tiny_function

from rap_jax.attacks import ThreatModel
from rap_jax.attacks.square import Square
from rap_jax.config import AttackConfig
from rap_jax.export.onnx.file import onnx_model, open_session
from rap_jax.export.onnx.robustness import measure, square_on_host


def images_and_labels(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    split = tiny.tiny_dataset().test
    return split.images[:count].astype(np.float32) / 255, split.labels[:count]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_outside_jax_is_square(norm: str) -> None:
    """The same keys, the same queries, the same images broken; asked by a plain function of numpy arrays."""
    images, labels = images_and_labels()
    attack = Square(ThreatModel(norm, {"linf": 0.12, "l2": 1.5}[norm]), num_steps=15)
    logits_fn, key, asked = tiny_function(), jax.random.key(5), []

    def on_host(batch: np.ndarray) -> np.ndarray:
        assert type(batch) is np.ndarray
        asked.append(batch)
        return np.asarray(logits_fn(jnp.asarray(batch)))

    found = square_on_host(attack, on_host, key, images, labels)
    keys, numbers = jax.random.split(key, len(images)), jnp.zeros(len(images), jnp.int32)
    start = jax.jit(lambda: attack.start(logits_fn, keys, jnp.asarray(images), jnp.asarray(labels), numbers))()
    state = jax.jit(lambda state: attack.advance(logits_fn, state, 15))(start)
    np.testing.assert_array_equal(found, state.broken)
    assert 0 < found.sum() < len(images) and len(asked) == 17
    distance = np.abs(np.stack(asked[1:]) - images).max() if norm == "linf" else 0
    assert distance <= 0.12 + 1e-6 and 0 <= min(map(np.min, asked)) <= max(map(np.max, asked)) <= 1


def test_a_file_is_measured_beside_its_network(tmp_path: Path) -> None:
    images, labels = images_and_labels()
    labels = np.where(np.arange(40) < 4, (labels + 1) % 10, labels)
    shape, attack = (8, 8, 1), AttackConfig("linf", 1.5 * EPSILON, EPSILON / 2, 5)
    model = onnx_model(tiny_function(), input_shape=shape, num_classes=10, metadata={})
    session = open_session(model.SerializeToString())
    same = measure(session.logits_fn, tiny_function(), images, labels, attack, num_queries=8)
    assert same["file"] == same["float"] and 0 < same["file"]["transfer"] < same["file"]["clean"] == 0.9
    other = measure(session.logits_fn, tiny_function(1), images, labels, attack, num_queries=0)
    assert "square" not in other["file"] and other["file"]["robust"] == other["file"]["transfer"]
    assert other["file"]["transfer"] > other["float"]["transfer"], "images made on another network transfer less"
    low, high = same["file"]["robust_interval"]
    assert low < same["file"]["robust"] < high


def test_logits_that_are_no_numbers_are_refused() -> None:
    """NaN at one image, whose argmax is class 0."""
    images, labels = images_and_labels(4)
    right = tiny_function()
    broken = lambda batch: np.where(np.arange(len(batch))[:, None] == 1, np.nan, np.asarray(right(jnp.asarray(batch))))
    attack = AttackConfig(epsilon=EPSILON, step_size=EPSILON, num_steps=1)
    with pytest.raises(ValueError, match="1 of 4 images get logits of the file that are NaN or infinite"):
        measure(broken, right, images, labels, attack, num_queries=0)
