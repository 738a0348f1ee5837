"""Robust accuracy: counts against a plain loop, worst case per example, the interval, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax.config import AttackConfig
from rap_jax.evaluate import Accuracy, make_evaluator, wilson_interval
from rap_jax.models import Model
from rap_jax.state import make_mesh, put_split

ATTACK = AttackConfig(epsilon=0.2, step_size=0.1, num_steps=3)
NUM_EXAMPLES = 37


def linear_apply(params: dict, batch_stats: dict, images: jax.Array, train: bool) -> tuple[jax.Array, dict]:
    assert not train
    return images.reshape(len(images), -1) @ params["kernel"], batch_stats


LINEAR = Model(lambda key: ({}, {}), linear_apply, (2, 2, 1), 3, "dense")
PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (4, 3))}


@pytest.fixture(name="images")
def make_images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUM_EXAMPLES, 2, 2, 1), np.uint8)


@pytest.fixture(name="labels")
def make_labels(images: np.ndarray) -> np.ndarray:
    right = np.asarray(linear_apply(PARAMS, {}, images / 255, False)[0]).argmax(1)
    return np.where(np.arange(NUM_EXAMPLES) % 5 == 0, (right + 1) % 3, right).astype(np.int32)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("batch_size", [8, 13, 64, 10**9])
def test_counts_equal_a_plain_loop(images: np.ndarray, labels: np.ndarray, num_devices: int, batch_size: int) -> None:
    """A linear binary margin has a known worst case under L-infinity, so no attack is needed for the answer."""
    mesh = make_mesh(jax.devices()[:num_devices])
    evaluate = make_evaluator(LINEAR, ATTACK, mesh, batch_size=batch_size)
    found = evaluate(PARAMS, {}, put_split(images, labels, mesh), jax.random.key(0))
    natural = robust = 0
    kernel = np.asarray(PARAMS["kernel"])
    for image, label in zip(images.reshape(-1, 4) / 255, labels, strict=True):
        natural += (image @ kernel).argmax() == label
        others = [k for k in range(3) if k != label]
        worst = [np.clip(image + 0.2 * np.sign(kernel[:, k] - kernel[:, label]), 0, 1) for k in others]
        robust += all((w @ kernel)[label] > (w @ kernel)[k] for w, k in zip(worst, others, strict=True))
    assert (found.natural_correct, found.num_examples) == (natural, NUM_EXAMPLES)
    assert robust <= found.robust_correct <= natural  # PGD is a lower bound on what an attack can do
    assert found.robust_correct - robust <= 2


def test_every_restart_counts(images: np.ndarray, labels: np.ndarray) -> None:
    mesh = make_mesh()
    split = put_split(images, labels, mesh)

    def robust(num_restarts: int) -> int:
        attack = AttackConfig(epsilon=0.5, step_size=0.1, num_steps=0, num_restarts=num_restarts)
        return make_evaluator(LINEAR, attack, mesh, batch_size=40)(PARAMS, {}, split, jax.random.key(3)).robust_correct

    assert robust(30) < robust(1)


def test_robust_needs_the_clean_image_too(images: np.ndarray) -> None:
    """Labels that the attack alone would call robust: the clean image is wrong, its neighbourhood often right."""
    mesh = make_mesh()
    wrong = np.asarray(linear_apply(PARAMS, {}, images / 255, False)[0]).argmin(1).astype(np.int32)
    attack = AttackConfig(epsilon=1.0, step_size=0.1, num_steps=0)
    found = make_evaluator(LINEAR, attack, mesh, batch_size=40)(
        PARAMS, {}, put_split(images, wrong, mesh), jax.random.key(0)
    )
    assert found.natural_correct == 0 and found.robust_correct == 0


def test_progress_is_reported(images: np.ndarray, labels: np.ndarray) -> None:
    mesh, seen = make_mesh(), []
    make_evaluator(LINEAR, ATTACK, mesh, batch_size=16)(
        PARAMS, {}, put_split(images, labels, mesh), jax.random.key(0), lambda done, total: seen.append((done, total))
    )
    assert seen == [(16, 37), (32, 37), (37, 37)]


def test_nan_weights_are_refused(images: np.ndarray, labels: np.ndarray) -> None:
    mesh = make_mesh()
    broken = {"kernel": PARAMS["kernel"] * jnp.nan}
    with pytest.raises(ValueError, match="linf ball of radius 0.2.*NaN"):
        make_evaluator(LINEAR, ATTACK, mesh, batch_size=40)(
            broken, {}, put_split(images, labels, mesh), jax.random.key(0)
        )


def test_an_attack_that_leaves_the_ball_is_refused(
    images: np.ndarray, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    escape = lambda key, loss_fn, images, **settings: jnp.clip(images + 0.21, 0, 1)[None]
    monkeypatch.setattr("rap_jax.evaluate.pgd_restarts", escape)
    mesh = make_mesh()
    with pytest.raises(ValueError, match="outside the linf ball"):
        make_evaluator(LINEAR, ATTACK, mesh, batch_size=40)(
            PARAMS, {}, put_split(images, labels, mesh), jax.random.key(0)
        )


def test_wilson_interval() -> None:
    # Reference values: statsmodels.stats.proportion.proportion_confint(..., method="wilson").
    assert wilson_interval(50, 100) == pytest.approx((0.4038315, 0.5961685), abs=1e-6)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((0.7224672, 1.0), abs=1e-6)
    for bad in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match=str(bad[0])):
            wilson_interval(*bad)


def test_accuracy_as_json() -> None:
    found = Accuracy(90, 45, 100, ATTACK)
    record = found.to_json()
    assert (record["natural_accuracy"], record["robust_accuracy"], found.score) == (0.9, 0.45, 0.675)
    assert record["natural_interval"] == list(wilson_interval(90, 100))
    assert record["robust_interval"] == list(wilson_interval(45, 100))
    assert record["attack"]["num_steps"] == 3 and record["num_examples"] == 100
