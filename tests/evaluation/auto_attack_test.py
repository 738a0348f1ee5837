"""AutoAttack as a whole: what it says of each example, and that nothing but the key decides it."""

import dataclasses
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smooth_net import CLASSES, examples, logits_fn

from rap_jax.attacks import ThreatModel
from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.fab import Fab
from rap_jax.attacks.square import HybridSquare, Square
from rap_jax.attacks.stepwise import run_attack
from rap_jax.attacks.stepwise_pgd import Pgd
from rap_jax.evaluation.auto_attack import AutoAttackResult, auto_attack, versions
from rap_jax.evaluation.auto_attack.programs import Programs, steps_between_checks
from rap_jax.evaluation.auto_attack.slots import Slots, even_slots
from rap_jax.evaluation.auto_attack.versions import NAMES, Component, components_of, stream_of

EPSILON = 0.04
THREAT_MODEL = ThreatModel("linf", EPSILON)
IMAGES, LABELS = examples(50, wrong=4)
KEY = jax.random.key(0)
GIVEN: dict[str, Any] = {"threat_model": THREAT_MODEL, "key": KEY}
COMPONENTS = (
    Component("apgd-ce", Apgd(THREAT_MODEL, num_steps=10)),
    Component("apgd-t", Apgd(THREAT_MODEL, num_steps=10, num_targets=3)),
    Component("fab-t", Fab(THREAT_MODEL, num_steps=10, num_targets=2)),
    Component("square", Square(THREAT_MODEL, num_steps=40)),
)


def attack(**changes: object) -> AutoAttackResult:
    settings = {
        **GIVEN,
        "components": COMPONENTS,
        "diagnostics": False,
        "devices": jax.devices()[:2],
    }
    return auto_attack(logits_fn, IMAGES, LABELS, **settings | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module", name="result")
def make_result() -> AutoAttackResult:
    return attack()


def test_every_example_is_accounted_for(result: AutoAttackResult) -> None:
    logits = np.asarray(logits_fn(jnp.asarray(result.adversarial)))
    right = logits.argmax(-1) == LABELS
    np.testing.assert_array_equal(right, result.robust)
    np.testing.assert_array_equal(~right, result.broken)
    np.testing.assert_array_equal(result.broken_by[:4], "clean")
    assert (result.broken_by[4:] != "clean").all()
    delta = result.adversarial - IMAGES
    np.testing.assert_allclose(result.size, np.abs(delta).max((1, 2, 3)), atol=1e-7)
    assert result.size.max() <= EPSILON * (1 + 1e-5)
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    rows = np.arange(len(LABELS))
    others = logits.copy()
    others[rows, LABELS] = -np.inf
    np.testing.assert_allclose(result.margin, others.max(-1) - logits[rows, LABELS], atol=1e-4)
    assert 0 < result.robust_accuracy < result.clean_accuracy == 46 / 50


def test_components_add_up(result: AutoAttackResult) -> None:
    left = 46
    for component in result.components:
        assert component.attacked == left
        assert component.broken == (result.broken_by == component.name).sum()
        left -= component.broken
        assert component.robust_accuracy == left / 50
    assert left == result.robust.sum()


@pytest.mark.e2e
def test_each_component_is_the_attack_of_the_library(result: AutoAttackResult) -> None:
    """What is broken by a component alone is what `run_attack` breaks under the key of that component."""
    for component in COMPONENTS:
        alone = attack(components=[component])
        key = jax.random.fold_in(KEY, NAMES.index(component.name))
        found = run_attack(component.attack, logits_fn, jnp.asarray(IMAGES), jnp.asarray(LABELS), key=key)
        broken = np.asarray(found.broken)
        np.testing.assert_array_equal(alone.broken_by[4:] == component.name, broken[4:])
        union = result.broken_by != ""
        assert union[alone.broken_by != ""].all()  # the ensemble is never above a component


@pytest.mark.e2e
@pytest.mark.parametrize("num_devices, batch_size", [(1, 7), (8, 0), (1, 0)])
def test_neither_devices_nor_batches_change_it(result: AutoAttackResult, num_devices: int, batch_size: int) -> None:
    other = attack(devices=jax.devices()[:num_devices], batch_size=batch_size)
    np.testing.assert_array_equal(other.broken_by, result.broken_by)
    np.testing.assert_allclose(other.adversarial, result.adversarial, atol=1e-3)


def test_the_key_decides(result: AutoAttackResult) -> None:
    again, other = attack(), attack(key=jax.random.key(1))
    np.testing.assert_array_equal(again.adversarial, result.adversarial)
    assert np.abs(other.adversarial - result.adversarial).max() > 1e-3


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.e2e
@pytest.mark.parametrize("looks", [1, 3, 9])
def test_goes_on_after_a_kill(result: AutoAttackResult, tmp_path: Path, looks: int) -> None:
    path, left = tmp_path / "state.npz", looks

    def stop() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KilledError

    with pytest.raises(KilledError):
        attack(state_path=path, on_look=stop)
    gone_on = attack(state_path=path)
    np.testing.assert_array_equal(gone_on.broken_by, result.broken_by)
    np.testing.assert_allclose(gone_on.adversarial, result.adversarial, atol=1e-6)
    looked = 0

    def count() -> None:
        nonlocal looked
        looked += 1

    finished = attack(state_path=path, on_look=count)
    assert looked == 0  # nothing is attacked twice
    np.testing.assert_array_equal(finished.broken_by, result.broken_by)


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    components = COMPONENTS[:1]
    attack(state_path=path, components=components)
    wider = [Component("apgd-ce", Apgd(ThreatModel("linf", 0.05), num_steps=10))]
    with pytest.raises(ValueError, match="epsilon: 0.04 in the folder, 0.05 now"):
        attack(state_path=path, components=wider, threat_model=ThreatModel("linf", 0.05))
    without_gradient = lambda x: logits_fn(jax.lax.stop_gradient(x)) + 0 * x.sum()
    for other in (lambda x: 2 * logits_fn(x), without_gradient):
        with pytest.raises(ValueError, match="holds another evaluation:\n  program and weights of the network"):
            auto_attack(
                other, IMAGES, LABELS, **GIVEN, components=components, state_path=path,
                diagnostics=False, devices=jax.devices()[:2],
            )  # fmt: skip
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        attack(state_path=path, components=components)


@pytest.mark.e2e
def test_a_network_that_answers_one_class_is_robust_and_one_that_is_wrong_is_not_attacked() -> None:
    constant = lambda x: jnp.zeros((len(x), CLASSES)).at[:, 2].set(1.0) + 0 * x.sum((1, 2, 3))[:, None]
    labels = np.full(50, 2, np.int32)
    labels[:10] = 1
    found = auto_attack(constant, IMAGES, labels, **GIVEN, components=COMPONENTS, diagnostics=False)
    assert found.robust.tolist() == [False] * 10 + [True] * 40


def test_captured_weights_may_lie_on_one_device(result: AutoAttackResult) -> None:
    weight = jax.device_put(jnp.ones(()), jax.devices()[1])
    committed = jax.jit(lambda x: logits_fn(x) * weight)
    found = auto_attack(
        committed, IMAGES, LABELS, **GIVEN, components=COMPONENTS[:1], diagnostics=False,
        devices=jax.devices()[:2],
    )  # fmt: skip
    np.testing.assert_array_equal(found.broken_by == "apgd-ce", result.broken_by == "apgd-ce")


def test_versions() -> None:
    names = lambda version, classes: [
        p.name for p in components_of(version, threat_model=ThreatModel("l2", 0.1), num_classes=classes)
    ]
    assert names("standard", 10) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert names("plus", 10) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert names("rand", 10) == ["apgd-ce", "apgd-dlr"]
    assert names("strong", 10) == [*names("standard", 10), "square-hybrid"]
    assert names("strong", 3) == [*names("standard", 3), "square-hybrid"]
    assert names("quick", 10) == ["pma", "square-hybrid"] == names("quick", 2)
    assert names("standard", 3) == ["apgd-ce", "fab-t", "square"]
    assert names("plus", 2) == ["apgd-ce", "fab", "square", "fab-t"]
    starts = {
        p.name: p.attack.num_starts
        for p in components_of("plus", threat_model=ThreatModel("linf", 0.1), num_classes=10)
    }
    assert starts == {"apgd-ce": 5, "apgd-dlr": 5, "fab": 5, "square": 1, "apgd-t": 9, "fab-t": 9}
    steps = {
        p.name: p.attack.num_steps
        for p in components_of("standard", threat_model=ThreatModel("linf", 0.1), num_classes=10)
    }
    assert steps == {"apgd-ce": 100, "apgd-t": 100, "fab-t": 100, "square": 5000}
    with pytest.raises(ValueError, match="version is 'custom'; expected one of standard, plus, rand, strong, quick"):
        components_of("custom", threat_model=ThreatModel("linf", 0.1), num_classes=10)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_classes", [2, 3, 4, 10])
def test_strong_begins_with_standard(num_classes: int) -> None:
    """With the same attacks under the same names, which decide the random numbers: so it is never above it."""
    standard, strong = (
        components_of(version, threat_model=THREAT_MODEL, num_classes=num_classes)  # type: ignore[arg-type]
        for version in ("standard", "strong")
    )
    assert strong[: len(standard)] == standard
    assert [stream_of(component.name) for component in standard] == [stream_of(c.name) for c in strong[: len(standard)]]


def test_what_strong_says_of_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network whose gradient points the other way."""
    masked = lambda x: logits_fn(2 * jax.lax.stop_gradient(x) - x)
    standard = (Component("apgd-ce", Apgd(THREAT_MODEL, num_steps=5)), Component("square", Square(THREAT_MODEL, 10)))
    hybrid = Component("square-hybrid", HybridSquare(THREAT_MODEL, 60, gradient_steps=2, first_query=0))
    settings: dict[str, Any] = {**GIVEN, "diagnostics": False, "devices": jax.devices()[:1]}
    run = lambda version, components: auto_attack(
        masked, IMAGES, LABELS, **settings, version=version, components=components
    )
    other = run("standard", standard)
    assert other.standard_accuracy is None  # same names, other settings: its number is not that of AutoAttack
    monkeypatch.setattr(versions, "components_of", lambda version, **_: standard)
    before, strong = run("standard", standard), run("strong", (*standard, hybrid))
    assert strong.standard_accuracy == before.robust_accuracy == before.standard_accuracy > strong.robust_accuracy
    first = strong.broken_by != "square-hybrid"
    np.testing.assert_array_equal(strong.broken_by[first], before.broken_by[first])
    np.testing.assert_array_equal(strong.adversarial[first], before.adversarial[first])
    assert [finding.name for finding in strong.findings] == ["Square beats the gradients", "standard is too high"]
    assert strong.masked_share == np.isin(strong.broken_by, ["square", "square-hybrid"]).mean()
    assert strong.masked_share > before.masked_share == (before.broken_by == "square").mean() > 0
    assert strong.to_json()["standard_accuracy"] == strong.standard_accuracy
    assert [part["random_search"] for part in strong.to_json()["parts"]] == [False, True, True]
    alone = run("quick", standard[1:])
    assert alone.masked_share == 0 and alone.standard_accuracy is None  # no gradient came before


def test_random_numbers_follow_from_the_name_of_a_component() -> None:
    assert [stream_of(name) for name in NAMES] == list(range(len(NAMES)))  # what was published stays as it is
    streams = {stream_of(name) for name in (*NAMES, "my-apgd", "my-square", "apgd-ce ", "")}
    assert len(streams) == len(NAMES) + 4 and max(streams) < 2**31
    assert stream_of("my-apgd") == 78904572  # in every process


def test_a_component_may_have_any_name_and_its_own_random_numbers() -> None:
    components = [
        Component("square", Square(THREAT_MODEL, num_steps=1)),
        Component("mine", Square(THREAT_MODEL, num_steps=1)),
    ]
    images = {component.name: attack(components=[component]).adversarial for component in components}
    assert np.abs(images["mine"] - images["square"]).max() > EPSILON / 2
    assert [component.name for component in attack(components=components).components] == ["square", "mine"]


def test_a_component_without_steps_is_its_start_alone() -> None:
    found = attack(components=[Component("square", Square(THREAT_MODEL, num_steps=0))])
    key, start = jax.random.fold_in(KEY, NAMES.index("square")), Square(THREAT_MODEL, num_steps=0)
    first = run_attack(start, logits_fn, jnp.asarray(IMAGES), jnp.asarray(LABELS), key=key)
    np.testing.assert_array_equal(found.broken_by[4:] == "square", first.broken[4:])


class NoAttack:
    num_starts, num_steps = 1, 5

    def start(self) -> None: ...


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ((), r"components is \(\); expected a sequence of Component"),
        ("square", "components is 'square'; expected a sequence"),
        (COMPONENTS[0], r"components is Component\(.*; expected a sequence"),
        ((COMPONENTS[0].attack,), "expected a sequence of Component"),
        ((COMPONENTS[0], COMPONENTS[0]), "components is 'apgd-ce'; expected another name for each"),
        ((Component("clean", COMPONENTS[0].attack),), "name of a component is 'clean'; expected text other than clean"),
        ((Component("", COMPONENTS[0].attack),), "name of a component is ''"),
        ((Component("mine", NoAttack()),), "attack of mine is .*; expected an attack with start, advance"),
        ((Component("mine", Apgd),), "attack of mine is .*; expected an attack with start, advance"),
        (
            (Component("mine", SimpleNamespace(start=0, advance=0, num_steps=5, num_starts=0)),),
            "num_starts of mine is 0",
        ),
    ],
)
def test_components_that_cannot_be_are_refused(components: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attack(components=components)


@pytest.mark.parametrize(
    "labels", [LABELS.tolist(), LABELS.astype(np.uint8), jnp.asarray(LABELS), LABELS.astype(">i8")]
)
@pytest.mark.parametrize("images", [IMAGES.astype(">f8"), jnp.asarray(IMAGES), IMAGES.tolist()])
def test_arrays_of_any_kind(result: AutoAttackResult, images: Any, labels: Any) -> None:
    found = auto_attack(logits_fn, images, labels, **GIVEN, components=COMPONENTS[:1], diagnostics=False)
    np.testing.assert_array_equal(found.broken_by == "apgd-ce", result.broken_by == "apgd-ce")


@pytest.mark.parametrize(
    "labels",
    [LABELS[:, None], LABELS[:1], LABELS[0], np.eye(CLASSES)[LABELS], LABELS.astype(float), LABELS > 0, None]
    + [LABELS - 5, LABELS + 1, LABELS.astype(np.uint64) + 2**32, LABELS.astype(object)],
)
def test_labels_that_cannot_be_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"labels are .*; expected (whole numbers \[50\]|0 to 4)"):
        auto_attack(logits_fn, IMAGES, labels, **GIVEN, components=COMPONENTS)


@pytest.mark.parametrize(
    "images",
    [IMAGES[..., 0], IMAGES[:0], IMAGES > 0.5, None, np.where(IMAGES > 0.9, np.nan, IMAGES), IMAGES - 0.1]
    + [np.where(IMAGES > 0.9, np.inf, IMAGES), [IMAGES[0].tolist(), [1.0]]],
)
def test_images_that_cannot_be_are_refused(images: Any) -> None:
    with pytest.raises(ValueError, match=r"images (is|cannot)|Pixels go from"):
        auto_attack(logits_fn, images, LABELS, **GIVEN, components=COMPONENTS)


def test_images_that_were_given_away_are_refused() -> None:
    images = jnp.asarray(IMAGES) + 0
    images.delete()
    with pytest.raises(ValueError, match=r"images cannot be read \(.*deleted"):
        auto_attack(logits_fn, images, LABELS, **GIVEN, components=COMPONENTS)


@pytest.mark.e2e
@pytest.mark.parametrize("promotion", ["standard", "strict"])
def test_wide_numbers_and_strict_promotion_of_dtypes(promotion: Any) -> None:
    components = (COMPONENTS[0], COMPONENTS[3])
    settings: dict[str, Any] = {
        **GIVEN,
        "components": components,
        "devices": jax.devices()[:1],
    }
    usual = auto_attack(logits_fn, IMAGES[:12], LABELS[:12], **settings, diagnostics=False)
    with jax.numpy_dtype_promotion(promotion), jax.enable_x64(True):
        found = auto_attack(logits_fn, IMAGES[:12], LABELS[:12], **settings)
    np.testing.assert_array_equal(found.broken_by, usual.broken_by)
    assert found.findings == ()


@pytest.mark.e2e
def test_a_randomised_network_is_attacked_with_its_key() -> None:
    noisy = lambda x, key: logits_fn(x) + 0.01 * jax.random.normal(key, (len(x), CLASSES))
    components = [Component("apgd-ce", Apgd(THREAT_MODEL, num_steps=10, num_samples=2))]
    found = auto_attack(noisy, IMAGES, LABELS, **GIVEN, version="rand", components=components)
    assert 0 < found.robust_accuracy < found.clean_accuracy


@pytest.mark.e2e
def test_the_noise_of_a_randomised_network_does_not_depend_on_the_batch() -> None:
    noisy = lambda x, key: logits_fn(x) + 0.3 * jax.random.normal(key, (len(x), CLASSES))
    components = [Component("apgd-ce", Apgd(THREAT_MODEL, num_steps=3, num_samples=2))]
    settings: dict[str, Any] = {**GIVEN, "version": "rand", "components": components}
    whole = auto_attack(noisy, IMAGES[:9], LABELS[:9], **settings, devices=jax.devices()[:1])
    split = auto_attack(noisy, IMAGES[:9], LABELS[:9], **settings, devices=jax.devices()[:2], batch_size=4)
    np.testing.assert_array_equal(whole.broken_by, split.broken_by)
    for name in ("clean_margin", "margin", "adversarial"):
        np.testing.assert_allclose(getattr(whole, name), getattr(split, name), atol=1e-5)


@pytest.mark.parametrize("num_steps, expected", [(100, 10), (5000, 100), (40, 4), (7, 1), (1, 1)])
def test_checks_come_often_enough(num_steps: int, expected: int) -> None:
    assert steps_between_checks(num_steps) == expected


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"threat_model": ThreatModel("linf", 0.0)}, "epsilon is 0.0; expected a number above 0"),
        ({"threat_model": 0.3}, "threat_model is 0.3; expected one, such as ThreatModel"),
        ({"version": "fast", "components": None}, "version is 'fast'"),
        ({"batch_size": -1}, "batch_size is -1"),
    ],
)
def test_refuses_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attack(**changes)


def test_refuses_arrays() -> None:
    call = lambda images, labels, fn=logits_fn: auto_attack(fn, images, labels, **GIVEN, components=COMPONENTS)
    with pytest.raises(ValueError, match=r"Pixels go from 0 to 255; expected \[0, 1\]"):
        call(np.linspace(0, 255, IMAGES.size, dtype=np.float32).reshape(IMAGES.shape), LABELS)
    with pytest.raises(ValueError, match=r"images is 'uint8\[50, 6, 6, 1\]'"):
        call((IMAGES * 255).astype(np.uint8), LABELS)
    with pytest.raises(ValueError, match=r"labels are int32\[49\]; expected whole numbers \[50\]"):
        call(IMAGES, LABELS[:49])
    with pytest.raises(ValueError, match="labels are 0 to 5; expected 0 to 4"):
        call(IMAGES, np.arange(50) % 6)
    with pytest.raises(ValueError, match="NaN or infinite"):
        call(IMAGES, LABELS, lambda x: logits_fn(x) * jnp.nan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threat_model": ThreatModel("l2", 30.0)}, "epsilon is 30.0; expected at most"),
        ({"key": 0}, "key is 0; expected a single typed PRNG key"),
        ({"state_path": "."}, "state_path is '.'; expected a file"),
        ({"key": jax.random.PRNGKey(0)}, "key is .*; expected a single typed PRNG key"),
        ({"key": jax.random.split(KEY)}, "key is .*; expected a single typed PRNG key"),
        ({"devices": []}, r"devices is \[\]; expected some of"),
        ({"devices": jax.devices()[0]}, "devices is .*; expected some of"),
        ({"devices": jax.devices()[:1] * 2}, "devices is .*; expected some of jax.devices.., each once"),
        ({"batch_size": "8"}, "batch_size is '8'; expected 0, which chooses"),
        ({"batch_size": 2.5}, "batch_size is 2.5; expected 0, which chooses"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attack(**changes)


@pytest.mark.e2e
def test_logits_alone_are_expected_and_may_be_narrow(result: AutoAttackResult, tmp_path: Path) -> None:
    settings = {**GIVEN, "components": COMPONENTS, "diagnostics": False}
    with pytest.raises(ValueError, match="logits_fn returns a tuple; expected an array of logits"):
        auto_attack(lambda x: (logits_fn(x), x), IMAGES, LABELS, **settings)  # type: ignore[arg-type]
    path = tmp_path / "new" / "folder" / "state.npz"
    narrow = lambda x: logits_fn(x).astype(jnp.float16)
    found = auto_attack(narrow, IMAGES, LABELS, state_path=path, **settings)  # type: ignore[arg-type]
    assert path.exists() and (found.robust == result.robust).mean() > 0.9


def test_a_gradient_that_is_nan_is_called_that() -> None:
    without = lambda x: logits_fn(x) + jnp.sqrt(0 * x.sum((1, 2, 3)))[:, None]
    with pytest.raises(ValueError, match="have survived an attack that met logits or gradients that are NaN"):
        auto_attack(without, IMAGES, LABELS, **GIVEN, components=COMPONENTS, diagnostics=False)


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_slots_are_full_to_the_end(num_devices: int) -> None:
    most = 64 * num_devices
    for num_examples in (0, 1, 7, 100, 212, 838, 5000):
        for num_starts in (1, 9):
            tasks = num_examples * num_starts
            slots = even_slots(num_examples, tasks, most, num_devices)
            assert num_devices <= slots <= most and slots % num_devices == 0
            rounds = lambda slots: -(-tasks // min(slots, max(1, num_examples)))  # noqa: B023
            assert rounds(slots) <= rounds(most)
            if num_examples >= most:
                assert slots * rounds(slots) - tasks <= 0.1 * tasks
            microbatches = -(-slots // num_devices // 32)
            assert slots // num_devices % microbatches == 0  # equal microbatches for the caches
    assert even_slots(212, 212, 128, 2) == 108
    assert even_slots(950, 950, 512, 1, 2) == 480  # two rows that are full once: 15 parts of 32


@pytest.mark.e2e
def test_two_rows_change_nothing(result: AutoAttackResult, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list[int]()
    run = Slots.run
    monkeypatch.setattr(Programs, "runs_ahead", True)
    monkeypatch.setattr(Slots, "run", lambda slots, *given: rows.append(len(slots._rows)) or run(slots, *given))
    found = attack(batch_size=8, devices=jax.devices()[:1])
    assert rows == [2, 2, 2, 2]
    np.testing.assert_array_equal(found.broken_by, result.broken_by)
    np.testing.assert_allclose(found.adversarial, result.adversarial, atol=1e-5)


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ThreatModel("linf", 0.01), r"has .*epsilon=0.01\); expected .*epsilon=0.04\), that of the call"),
        (ThreatModel("linf", 0.3), r"has .*epsilon=0.3\); expected .*epsilon=0.04\), that of the call"),
        (ThreatModel("l2", EPSILON), "has .*norm='l2'.*; expected .*norm='linf'.*, that of the call"),
    ],
)
def test_a_component_of_another_threat_model_is_refused(component: Component, other: ThreatModel, message: str) -> None:
    with pytest.raises(ValueError, match=f"component {component.name} {message}"):
        changed = component._replace(attack=dataclasses.replace(component.attack, threat_model=other))  # type: ignore[type-var]
        attack(components=[COMPONENTS[0]._replace(name="first"), changed])


@pytest.mark.parametrize("epsilon", [np.float32(EPSILON), np.array(EPSILON), jnp.float32(EPSILON), Fraction(1, 25)])
def test_a_radius_is_one_number_of_any_kind(epsilon: Any) -> None:
    few: dict[str, Any] = {"key": KEY, "diagnostics": False, "devices": jax.devices()[:1]}
    threat_model = ThreatModel("linf", epsilon)
    found = auto_attack(logits_fn, IMAGES[:4], LABELS[:4], threat_model=threat_model, components=COMPONENTS[3:], **few)
    radius = found.to_json()["epsilon"]
    assert type(radius) is float and radius == pytest.approx(EPSILON)


@pytest.mark.parametrize("attack_of", [Apgd, Fab, Square, Pgd])
def test_an_attack_without_draws_is_refused_for_a_randomised_network(attack_of: Any) -> None:
    settings = {"step_size": 0.01} if attack_of is Pgd else {}
    with pytest.raises(ValueError, match="mine has num_samples 0 and calls logits_fn.images.; version rand needs"):
        attack(version="rand", components=[Component("mine", attack_of(THREAT_MODEL, **settings))])


@pytest.mark.parametrize("version", ["standard", "plus"])
def test_an_attack_with_draws_is_refused_for_a_network_without_a_key(version: str) -> None:
    with pytest.raises(ValueError, match=f"mine has num_samples 2 and calls .*; version {version} needs num_samples"):
        attack(version=version, components=[Component("mine", Apgd(THREAT_MODEL, num_samples=2))])


@pytest.mark.e2e
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("num_images", [1, 5])
def test_batch_norm_in_training_mode_is_found_in_a_randomised_network(spatial: bool, num_images: int) -> None:
    axes = (0, 1, 2) if spatial else 0

    def network(images: jax.Array, key: jax.Array) -> jax.Array:
        normed = images - images.mean(axes, keepdims=True)
        return logits_fn(normed) + 0.1 * jax.random.normal(key, (len(images), CLASSES))

    components = [Component("apgd-ce", Apgd(THREAT_MODEL, num_steps=1, num_samples=1))]
    settings: dict[str, Any] = GIVEN | {"version": "rand", "components": components, "diagnostics": False}
    found = auto_attack(network, IMAGES[:num_images], LABELS[:num_images], **settings)
    assert [finding.name for finding in found.findings] == ["depends on the batch"]
    assert "BatchNorm is in training mode" in found.findings[0].text
    assert "attacked one image at a time" in found.findings[0].text


@pytest.mark.parametrize(
    ("logit", "message"),
    [
        (jnp.nan, r"NaN, at images 1, 7\).*Look for NaN among the weights"),
        (-jnp.inf, r"-infinity, at images 1, 7\).*columns of masked classes"),
        (jnp.inf, r"infinite, at images 1, 7\).*overflow"),
    ],
)
def test_clean_images_without_finite_logits_are_named(logit: float, message: str) -> None:
    def network(images: jax.Array) -> jax.Array:
        bad = (images[:, None] == IMAGES[None, [1, 7]]).all((2, 3, 4)).any(1)
        return jnp.where(bad[:, None], logits_fn(images).at[:, 1].set(logit), logits_fn(images))

    with pytest.raises(ValueError, match=rf"2 clean images get logits that are NaN or infinite \({message}"):
        auto_attack(network, IMAGES, LABELS, **GIVEN, components=COMPONENTS)


def test_masked_arrays_and_traced_ones_are_refused() -> None:
    call = lambda images, labels: auto_attack(logits_fn, images, labels, **GIVEN, components=COMPONENTS)
    with pytest.raises(ValueError, match="images is 'a masked array'"):
        call(np.ma.masked_greater(IMAGES, 0.9), LABELS)
    with pytest.raises(ValueError, match="labels is 'a masked array'"):
        call(IMAGES, np.ma.masked_equal(LABELS, 1))
    inside = "is called inside jax.jit, jax.vmap or jax.grad"
    with pytest.raises(ValueError, match=rf"{inside} \(images: traced float32\[50, 6, 6, 1\]\)"):
        jax.jit(lambda images: call(images, LABELS))(IMAGES)
    with pytest.raises(ValueError, match=inside):
        jax.jit(lambda: call(IMAGES, LABELS))()
