"""The accuracies that choose an epoch: those of the same attacks in AutoAttack, for any weights, compiled once."""

from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from rap_jax._runtime.mesh import DeviceSplit, make_mesh, put_split
from rap_jax.attacks import ThreatModel
from rap_jax.config import STAGES, AttackConfig, ModelConfig
from rap_jax.data.batches import to_unit
from rap_jax.evaluation import selection
from rap_jax.evaluation.auto_attack import auto_attack
from rap_jax.evaluation.selection import make_strong_evaluator, selection_components
from rap_jax.models import create_model
from rap_jax.models.model import Weights

pytestmark = [pytest.mark.usefixtures("optimised"), pytest.mark.e2e]

ATTACK = AttackConfig(epsilon=0.01)
MODEL = create_model(ModelConfig("lenet_mnist", 1), input_shape=(28, 28, 1), num_classes=10)
KEY = jax.random.key(5)


def weights_of(seed: int) -> Weights:
    return jax.jit(MODEL.init)(jax.random.key(seed))


@pytest.fixture(scope="module", name="split")
def make_split() -> tuple[np.ndarray, np.ndarray]:
    """Images that the first weights classify as their labels say, but for two."""
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8)
    labels = np.array(MODEL.logits(weights_of(0), to_unit(images)).argmax(-1), np.int32)
    labels[:2] = (labels[:2] + 1) % 10
    return images, labels


@pytest.mark.parametrize("num_devices", [1, 2])
def test_it_is_the_worst_case_of_its_attacks(split: tuple[np.ndarray, np.ndarray], num_devices: int) -> None:
    mesh = make_mesh(jax.devices()[:num_devices])
    evaluate, on_devices = make_strong_evaluator(MODEL, ATTACK, mesh), put_split(*split, mesh)
    threat_model = ThreatModel("linf", 0.01)
    counts = []
    for seed in (0, 1):
        weights = weights_of(seed)
        found = evaluate(*weights, on_devices, KEY)
        expected = auto_attack(
            lambda x, weights=weights: MODEL.logits(weights, x),
            to_unit(split[0]),
            split[1],
            threat_model=threat_model,
            key=KEY,
            components=selection_components(threat_model, 10),
            diagnostics=False,
        )
        assert found.num_examples == 40
        assert found.natural_correct == int((expected.broken_by != "clean").sum())
        assert found.robust_correct == int(expected.robust.sum())
        counts.append((found.natural_correct, found.robust_correct))
    assert counts[0][0] == 38 and 0 < counts[0][1] < 38
    assert counts[1] != counts[0], "other weights, the same programs"


def test_only_the_first_images_are_attacked(
    split: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "NUM_IMAGES", 5)
    mesh = make_mesh(jax.devices()[:1])
    found = make_strong_evaluator(MODEL, ATTACK, mesh)(*weights_of(0), put_split(*split, mesh), KEY)
    assert (found.num_examples, found.natural_correct) == (5, 3)


def test_what_cannot_be_judged_is_refused(split: tuple[np.ndarray, np.ndarray]) -> None:
    mesh = make_mesh(jax.devices()[:1])
    evaluate = make_strong_evaluator(MODEL, ATTACK, mesh)
    with pytest.raises(ValueError, match="number of images is 0; expected 1 or more"):
        evaluate(*weights_of(0), DeviceSplit(split[0][:0], split[1][:0]), KEY)  # type: ignore[arg-type]
    nan = jax.tree.map(lambda leaf: leaf * np.float32("nan"), weights_of(0))
    with pytest.raises(ValueError, match="40 clean images get logits that are NaN"):
        evaluate(*nan, put_split(*split, mesh), KEY)


def test_few_classes_have_no_ratio() -> None:
    names = [component.name for component in selection_components(ThreatModel("linf", 0.1), 3)]
    assert names == ["apgd-ce", "square"]


def test_a_run_chooses_its_epochs_by_it(tmp_path: Path) -> None:
    config = tiny.tiny_config(selection="strong")
    results = tiny.run_and_watch(tmp_path, config).results
    lines = [line for line in tiny.metrics_of(tmp_path) if line["kind"] == "validation"]
    assert len(lines) == sum(config.stage(stage).num_epochs for stage in STAGES)
    assert {0 <= line["robust_accuracy"] <= line["natural_accuracy"] <= 1 for line in lines} == {True}
    chosen = [line["epoch"] for line in lines if line["stage"] == "retrain" and line["selected"]]
    per_epoch = results["stages"]["retrain"]["step"] / chosen[-1]
    assert per_epoch == config.steps_per_epoch
