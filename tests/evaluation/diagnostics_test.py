"""Each finding is raised by the defect that it names, and a sound network raises none."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging
from smooth_net import CLASSES, examples, logits_fn

from rap_jax._runtime.functions import fingerprint
from rap_jax.attacks import ThreatModel
from rap_jax.attacks.apgd import Apgd
from rap_jax.evaluation.auto_attack import auto_attack
from rap_jax.evaluation.auto_attack.versions import Component
from rap_jax.evaluation.diagnostics import Diagnosis, check_left_out, check_quick, check_square, check_strong, diagnose
from rap_jax.evaluation.sweep import epsilon_sweep

IMAGES, LABELS = examples(60, wrong=2)
KEY = jax.random.key(0)
EPSILON = 0.05
THREAT_MODEL = ThreatModel("linf", EPSILON)


def of(network: Callable[[jax.Array], jax.Array], images: np.ndarray = IMAGES, norm: str = "linf") -> Diagnosis:
    return diagnose(network, images, LABELS, threat_model=ThreatModel(norm, EPSILON), key=KEY)


def names(diagnosis: Diagnosis) -> set[str]:
    return {finding.name for finding in diagnosis.findings}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sound_network_raises_nothing(norm: str) -> None:
    found = of(logits_fn, norm=norm)
    assert found.findings == []
    accuracies = [point.accuracy for point in found.sweep]
    assert accuracies[0] == pytest.approx(58 / 60) and accuracies[-1] == 0
    assert accuracies == sorted(accuracies, reverse=True)
    assert EPSILON in [point.epsilon for point in found.sweep]
    assert found.zero_gradients == 0
    np.testing.assert_allclose(found.predicted.sum(), 1)


def test_a_radius_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="threat_model is 0.1; expected one, such as ThreatModel"):
        diagnose(logits_fn, *examples(4), threat_model=0.1, key=jax.random.key(0))  # type: ignore[arg-type]


def test_probabilities() -> None:
    assert "probabilities" in names(of(lambda x: jax.nn.softmax(logits_fn(x))))
    assert "probabilities" not in names(of(lambda x: jax.nn.log_softmax(logits_fn(x))))


def test_randomised() -> None:
    calls = iter(range(1000))
    noisy = lambda x: (
        logits_fn(x) + jax.pure_callback(lambda: np.float32(next(calls)), jax.ShapeDtypeStruct((), jnp.float32))
    )
    assert "randomised" in names(of(_differentiable(noisy)))


def _differentiable(noisy: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The noise has no gradient: a callback cannot be differentiated."""
    return lambda x: logits_fn(x) + jax.lax.stop_gradient(noisy(jax.lax.stop_gradient(x)) - logits_fn(x))


def test_batch_norm_in_training_mode() -> None:
    assert "depends on the batch" in names(of(lambda x: logits_fn((x - x.mean(0, keepdims=True)) * 2)))


def test_collapsed() -> None:
    constant = lambda x: 1e-3 * logits_fn(x) + 5 * jax.nn.one_hot(jnp.full(len(x), 2), CLASSES)
    found = of(constant)
    assert {"collapsed", "unbroken at any radius"} <= names(found)
    assert "called class 2" in next(f.text for f in found.findings if f.name == "collapsed")


def test_zero_gradients_and_masking() -> None:
    saturated = lambda x: 1e4 * logits_fn(x)
    assert of(saturated).zero_gradients > 0.5
    assert "zero gradients" in names(of(saturated))
    masked = lambda x: logits_fn(jnp.round(x * 4) / 4)
    assert {"zero gradients", "unbroken at any radius"} <= names(of(masked))


def test_one_step_beats_many() -> None:
    """Near an image the gradient points away from the boundary, one step beyond it is fooled."""

    @jax.custom_vjp
    def bent(x: jax.Array) -> jax.Array:
        return logits_fn(x)

    def backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
        gradient = jax.vjp(logits_fn, x)[1](g)[0]
        clean = jnp.abs(x[:, None] - jnp.asarray(IMAGES)[None]).max((2, 3, 4)).min(1) < 1e-6
        return (jnp.where(clean[:, None, None, None], gradient, -gradient),)

    bent.defvjp(lambda x: (logits_fn(x), x), backward)
    assert "one step beats many" in names(of(bent))


def test_pixels_outside_the_box() -> None:
    assert "range of the images" in names(of(logits_fn, IMAGES * 2))


def test_sweep_counts_what_smaller_radii_have_broken() -> None:
    sweep = epsilon_sweep(jax.jit(logits_fn), IMAGES, LABELS, threat_model=ThreatModel("linf", 0.3), key=KEY)
    assert [round(point.epsilon, 3) for point in sweep] == [0, 0.075, 0.15, 0.225, 0.3, 0.45, 0.6, 1.0]


def test_sweep_attacks_only_where_the_answer_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at radius 0 nor once every image is broken; the accuracies are those of attacks at all radii."""
    right, radii = np.asarray(logits_fn(IMAGES)).argmax(-1) == LABELS, list[float]()

    def still_right(*arguments: Any) -> np.ndarray:
        radii.append(round(arguments[2].epsilon, 3))
        return np.arange(len(IMAGES)) >= 200 * radii[-1]

    monkeypatch.setattr("rap_jax.evaluation.sweep.still_right", lambda *arguments, **settings: still_right)
    sweep = epsilon_sweep(logits_fn, IMAGES, LABELS, threat_model=ThreatModel("linf", 0.3), key=KEY)
    assert radii == [0.075, 0.15, 0.225, 0.3]
    expected = [right[max(0, round(200 * point.epsilon)) :].sum() / len(IMAGES) for point in sweep]
    assert [point.accuracy for point in sweep] == pytest.approx(expected) and expected[0] == 58 / 60


def test_square() -> None:
    found = check_square({"apgd-ce": 0.5, "apgd-t": 0.4, "square": 0.39}, 1000)
    assert "broke 10 of the 400 images that the attacks before it, which do, had left (1.00%" in found[0].text
    assert check_square({"apgd-ce": 0.5, "apgd-t": 0.4, "square": 0.399}, 1000) == []
    assert check_square({"square": 0.1}, 10) == []


def test_quick_says_that_it_is_too_high() -> None:
    found = check_quick("quick", 0.015, 1000)
    assert "broke 15 images that the gradients had left (1.50% of all)" in found[0].text
    assert check_quick("quick", 0.002, 1000) == check_quick("standard", 0.5, 1000) == []


def test_strong_against_standard() -> None:
    found = check_strong(0.5, 0.49, 1000)
    assert "broke 10 images that those of AutoAttack standard had left (1.00% of all)" in found[0].text
    assert check_strong(0.5, 0.499, 1000) == check_strong(None, 0.1, 1000) == []


@pytest.mark.parametrize("wrap", [lambda network: network, jax.jit])
def test_a_network_is_forgotten_afterwards(wrap: Callable[..., Any]) -> None:
    def weights_of_a_network() -> weakref.ref[jax.Array]:
        weight = jnp.arange(36 * CLASSES, dtype=jnp.float32).reshape(36, CLASSES) % 7
        network = wrap(lambda x: x.reshape(len(x), -1) @ weight)
        of(network)
        fingerprint(network, IMAGES.shape[1:])
        return weakref.ref(weight)

    kept = weights_of_a_network()
    gc.collect()
    assert kept() is None


def test_few_classes() -> None:
    assert check_left_out("standard", 10) == []
    assert "The targeted dlr loss needs more, so components are left out;" in check_left_out("standard", 3)[0].text
    assert "The losses dlr and targeted dlr need more, so" in check_left_out("standard", 2)[0].text
    assert "aim at the 6 wrong ones" in check_left_out("plus", 7)[0].text


def test_auto_attack_hands_findings_on(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *values: warned.append(text % values))
    components = [Component("apgd-ce", Apgd(THREAT_MODEL, num_steps=2))]
    network = lambda x: jax.nn.softmax(logits_fn(x))
    found = auto_attack(network, IMAGES, LABELS, threat_model=THREAT_MODEL, key=KEY, components=components)
    assert "probabilities" in [finding.name for finding in found.findings]
    assert any("Return the logits" in text for text in warned)
