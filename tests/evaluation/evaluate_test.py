"""Robust accuracy: counts against a plain loop, worst case per example, the interval, and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax._runtime.mesh import DeviceSplit, make_mesh, put_split, replicated
from rap_jax.attacks import ThreatModel, pgd
from rap_jax.attacks.pgd import Restarts
from rap_jax.config import AttackConfig
from rap_jax.data import to_unit
from rap_jax.evaluation import correctness
from rap_jax.evaluation.accuracy import Accuracy, make_evaluator, wilson_interval
from rap_jax.models import Model

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


def plain_counts(images: np.ndarray, labels: np.ndarray, attack: AttackConfig, key: jax.Array) -> tuple[int, int]:
    """Every image by itself, in every restart, with nothing dropped."""

    @jax.jit
    def attacked(key: jax.Array, image: jax.Array, label: jax.Array) -> jax.Array:
        settings = {"step_size": attack.step_size, "num_steps": attack.num_steps}
        threat_model = ThreatModel(attack.norm, attack.epsilon)
        logits_fn = lambda x: linear_apply(PARAMS, {}, x, False)[0]
        return pgd(logits_fn, image, label, threat_model=threat_model, key=key, **settings).adversarial

    natural = robust = 0
    for number, (image, label) in enumerate(zip(to_unit(images)[:, None], labels[:, None], strict=True)):
        tried = [image]
        for restart in range(attack.num_restarts):
            start = jax.random.fold_in(jax.random.fold_in(key, number), restart)
            tried.append(attacked(start, image, label))
        right = [(linear_apply(PARAMS, {}, x, False)[0].argmax(-1) == label).item() for x in tried]
        natural, robust = natural + right[0], robust + all(right)
    return natural, robust


STRONG = AttackConfig(epsilon=0.3, step_size=0.1, num_steps=1, num_restarts=4)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "attack", [STRONG, dataclasses.replace(STRONG, norm="l2", epsilon=0.5), ATTACK], ids=["linf", "l2", "one"]
)
def test_counts_are_those_of_attacking_every_image_by_itself(
    images: np.ndarray, labels: np.ndarray, attack: AttackConfig
) -> None:
    key = jax.random.key(5)
    natural, robust = plain_counts(images, labels, attack, key)
    first = plain_counts(images, labels, dataclasses.replace(attack, num_restarts=1), key)[1]
    assert 0 < robust < natural < NUM_EXAMPLES and (robust < first or attack.num_restarts == 1)
    for num_devices in (1, 2, 8):
        mesh = make_mesh(jax.devices()[:num_devices])
        for batch_size in (1, 13, 10**9):
            evaluate = make_evaluator(LINEAR, attack, mesh, batch_size=batch_size)
            found = evaluate(PARAMS, {}, put_split(images, labels, mesh), key)
            assert found == Accuracy(natural, robust, NUM_EXAMPLES, attack)


def test_counts_are_near_the_known_worst_case(images: np.ndarray, labels: np.ndarray) -> None:
    """A linear binary margin has a known worst case under L-infinity, so no attack is needed for the answer."""
    mesh = make_mesh()
    evaluate = make_evaluator(LINEAR, ATTACK, mesh, batch_size=13)
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


@pytest.mark.parametrize("all_wrong", [False, True])
def test_progress_is_reported(images: np.ndarray, labels: np.ndarray, all_wrong: bool) -> None:
    mesh, seen = make_mesh(), []
    if all_wrong:
        labels = np.asarray(linear_apply(PARAMS, {}, images / 255, False)[0]).argmin(1).astype(np.int32)
    found = make_evaluator(LINEAR, STRONG, mesh, batch_size=16)(
        PARAMS, {}, put_split(images, labels, mesh), jax.random.key(0), lambda *numbers: seen.append(numbers)
    )
    done, totals = zip(*seen, strict=True)
    assert set(totals) == {NUM_EXAMPLES} and done == tuple(sorted(done)) and done[-1] == NUM_EXAMPLES
    assert done[2] == NUM_EXAMPLES - found.natural_correct  # after three batches of clean images
    assert (len(seen) == 3) == all_wrong  # what is decided is not attacked


def test_weights_and_split_may_lie_on_one_device_or_on_all(images: np.ndarray, labels: np.ndarray) -> None:
    mesh, key = make_mesh(), jax.random.key(0)
    evaluate, split = make_evaluator(LINEAR, STRONG, mesh, batch_size=16), DeviceSplit(images, labels)
    found = set()
    for place in (jax.devices()[0], jax.devices()[3], replicated(mesh)):
        for other in (jax.devices()[0], replicated(mesh)):
            found.add(evaluate(jax.device_put(PARAMS, place), {}, jax.device_put(split, other), key))
    assert len(found) == 1


@pytest.mark.parametrize("wrong", [False, True])
def test_nan_weights_are_refused(images: np.ndarray, labels: np.ndarray, wrong: bool) -> None:
    """NaN logits have their largest at class 0: examples of that class would count as right."""
    mesh = make_mesh()
    broken, labels = {"kernel": PARAMS["kernel"] * jnp.nan}, np.full_like(labels, 1 if wrong else 0)
    with pytest.raises(ValueError, match="16 clean images get logits that are NaN.* weights may be NaN"):
        make_evaluator(LINEAR, ATTACK, mesh, batch_size=16)(
            broken, {}, put_split(images, labels, mesh), jax.random.key(0)
        )


def nan_off_the_data(params: dict, batch_stats: dict, images: jax.Array, train: bool) -> tuple[jax.Array, dict]:
    """Logits that become NaN as soon as an image leaves the 256 values of a byte."""
    logits, batch_stats = linear_apply(params, batch_stats, images, train)
    off = jnp.abs(images * 255 - jnp.round(images * 255)).max((1, 2, 3), keepdims=True)[:, :, 0, 0] > 0.01
    return jnp.where(off, jnp.nan, logits), batch_stats


def test_nan_under_attack_is_refused(images: np.ndarray, labels: np.ndarray) -> None:
    mesh, model = make_mesh(), dataclasses.replace(LINEAR, apply=nan_off_the_data)
    attack = dataclasses.replace(ATTACK, num_steps=0)  # the images stay finite
    with pytest.raises(ValueError, match="linf ball of radius 0.2.* or their logits or gradients are NaN"):
        make_evaluator(model, attack, mesh, batch_size=40)(
            PARAMS, {}, put_split(images, labels, mesh), jax.random.key(0)
        )


def test_a_gradient_that_is_nan_is_refused_though_the_logits_are_finite(images: np.ndarray, labels: np.ndarray) -> None:
    def no_gradient(params: dict, batch_stats: dict, images: jax.Array, train: bool) -> tuple[jax.Array, dict]:
        logits, batch_stats = LINEAR.apply(params, batch_stats, images, train)
        return logits + jnp.sqrt(0 * logits), batch_stats

    mesh = make_mesh()
    with pytest.raises(ValueError, match="logits or gradients are NaN"):
        make_evaluator(dataclasses.replace(LINEAR, apply=no_gradient), ATTACK, mesh, batch_size=40)(
            PARAMS, {}, put_split(images, labels, mesh), jax.random.key(0)
        )


def test_an_attack_that_leaves_the_ball_is_refused(
    images: np.ndarray, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = lambda images: jnp.ones((1, len(images)), bool)
    escape = lambda loss_fn, images, **settings: Restarts(jnp.clip(images + 0.21, 0, 1)[None], valid(images))
    monkeypatch.setattr("rap_jax.evaluation.correctness.pgd_restarts", escape)
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


def test_the_attack_has_a_size_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, restarts = [], correctness.pgd_restarts
    watched = lambda *given, step_size, **more: sizes.append(step_size) or restarts(*given, step_size=step_size, **more)
    monkeypatch.setattr(correctness, "pgd_restarts", watched)
    attack = dataclasses.replace(ATTACK, num_steps=2, step_schedule="geometric")
    images, labels = np.zeros((8, *LINEAR.input_shape), np.uint8), np.zeros(8, np.int32)
    mesh = make_mesh(jax.devices()[:1])
    evaluate = make_evaluator(LINEAR, attack, mesh, batch_size=8)
    evaluate(PARAMS, {}, DeviceSplit(jnp.asarray(images), jnp.asarray(labels)), jax.random.key(0))
    assert sizes[0] == pytest.approx((attack.step_size, attack.step_size / 10))
