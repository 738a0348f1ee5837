"""Certificates inside an evaluation: a lower bound beside the attacks, which put it to the test."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_run import COMPONENTS, CONFIG, make_run, mislabelled, tiny_function

from rap_jax.attacks import ThreatModel
from rap_jax.config import EvaluationConfig
from rap_jax.evaluation import certified, robustness, suite
from rap_jax.evaluation.auto_attack import auto_attack, versions
from rap_jax.evaluation.auto_attack.versions import Component
from rap_jax.evaluation.certificates import certify
from rap_jax.evaluation.certified import Proofs, check_certifiable
from rap_jax.evaluation.network import AttackedNetwork, open_network
from rap_jax.evaluation.predictions import take_sample
from rap_jax.evaluation.suite import AttackReport, Setup, WorstCase, masking_of

DATA = mislabelled()
SAMPLE = take_sample(DATA, "test", 40)
FEW: EvaluationConfig = dataclasses.replace(CONFIG, pgd_losses=("ce",), auto_attack="none", certify="crown_ibp")


def relu_function() -> Callable[[jax.Array], jax.Array]:
    """Images -> logits of the tiny data: random features, and the least squares on top of them."""
    split, generator = tiny.tiny_dataset().train, np.random.default_rng(0)
    into = generator.normal(size=(64, 40)).astype(np.float32)
    features = np.maximum(split.images.reshape(-1, 64) / np.float32(255) @ into, 0)
    out = jnp.asarray(np.linalg.lstsq(features, np.eye(10, dtype=np.float32)[split.labels])[0])
    return lambda images: jax.nn.relu(images.reshape(images.shape[0], 64) @ jnp.asarray(into)) @ out


NETWORK = AttackedNetwork("relu", relu_function(), {"kind": "function", "checkpoint": "relu"}, {"name": "relu"})


def evaluate(folder: Path, network: AttackedNetwork = NETWORK, **changes: Any) -> dict[str, Any]:
    config = dataclasses.replace(FEW, **changes)
    return robustness.evaluate_robustness(network, DATA, config, folder, devices=jax.devices()[:2])


@pytest.mark.e2e
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.06), ("l2", 0.15)])
def test_robust_accuracy_is_an_interval(tmp_path: Path, norm: Any, epsilon: float) -> None:
    results = evaluate(tmp_path, norm=norm, epsilon=epsilon)
    threat_model = ThreatModel(norm, epsilon)
    alone = certify(NETWORK.logits_fn, SAMPLE.images, SAMPLE.labels, threat_model=threat_model, method="crown_ibp")
    proved, worst = results["certificates"], results["combined"]
    assert 0 < proved["certified_correct"] < worst["robust_correct"] < 40
    assert proved["certified_correct"] == alone.certified.sum() == sum(one["certified"] for one in proved["methods"])
    assert proved["certified_interval"][0] < proved["certified_accuracy"] < proved["certified_interval"][1]
    assert proved["methods"][0]["tried"] == 40 and results["seconds"]["certificates"] > 0
    with np.load(tmp_path / "examples.npz") as file:
        np.testing.assert_array_equal(file["certified"], alone.certified)
        assert not np.any(file["certified"] & (file["broken_by"] != ""))
        assert np.all((file["broken_by"] != "")[alone.broken])
    text = " ".join((tmp_path / "report.md").read_text().split())
    assert f"attacks: {proved['certified_correct']} .. {worst['robust_correct']} of 40 images" in text


@pytest.mark.e2e
def test_certificates_go_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        """Stands for a kill."""

    looks: list[str] = []

    def on_look(setup: Setup, where: str) -> Callable[[], None]:
        def look() -> None:
            looks.append(where)
            if looks.count("in the certificates") == 2:
                raise Killed

        return look

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Setup, "on_look", on_look)
        evaluate(tmp_path / "killed")
    looks.clear()
    with np.load(tmp_path / "killed" / "parts" / "certificates.npz") as file:
        tried = file["tried"]
    assert (tried == 1).sum() == 32 and (tried == 0).sum() == 8  # two batches of 16 by intervals
    again = evaluate(tmp_path / "killed")["certificates"]
    whole = evaluate(tmp_path / "whole")["certificates"]
    assert again | {"seconds": 0} == whole | {"seconds": 0}
    path = tmp_path / "killed" / "parts" / "certificates.npz"
    path.write_bytes(path.read_bytes()[:50])
    (tmp_path / "killed" / "results.json").unlink()
    with pytest.raises(ValueError, match=r"certificates.npz is damaged .*; delete it to have it made again"):
        evaluate(tmp_path / "killed")


@pytest.mark.e2e
def test_an_image_that_is_certified_and_broken_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = AttackReport("bounds", np.full(40, ""), SAMPLE.images, {"seconds": 0.0})
    monkeypatch.setattr(robustness, "certificates", lambda setup: Proofs(SAMPLE.labels >= 0, nothing))
    with pytest.raises(ValueError, match="images are certified, and PGD, any step broke them .the first is number 0"):
        evaluate(tmp_path)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.e2e
def test_what_has_no_bounds_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    smooth = NETWORK._replace(logits_fn=tiny_function(), name="smooth")
    with pytest.raises(ValueError, match=r"no bounds of smooth: The function has a tanh .* --certify=none"):
        evaluate(tmp_path / "new", smooth)
    assert not (tmp_path / "new").exists()


def test_files_of_jax_export_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="certify needs the operations of relu, and a file of jax.export holds"):
        check_certifiable(NETWORK._replace(about={"kind": "jax.export"}), (8, 8, 1))


@pytest.mark.e2e
def test_a_network_of_a_run_is_bounded_in_its_plain_form(tmp_path: Path) -> None:
    network = open_network(str(make_run(tmp_path / "run")))
    assert network.plain_fn is not None
    check_certifiable(network, (8, 8, 1))
    images = jnp.asarray(SAMPLE.images[:4])
    np.testing.assert_allclose(network.plain_fn(images), network.logits_fn(images), atol=1e-4)
    shown = jax.make_jaxpr(network.plain_fn)(images)
    assert "conv_general_dilated" in str(shown) and str(shown) != str(jax.make_jaxpr(network.logits_fn)(images))


def test_images_that_only_random_search_broke_are_counted() -> None:
    by = np.array(["clean", "pgd-ce", "square", "apgd-ce", "square", "", "", ""])
    worst = WorstCase(by, SAMPLE.images[:8], None)  # type: ignore[arg-type]
    parts = [{"name": name, "random_search": name != "apgd-ce"} for name in ("apgd-ce", "square", "other")]
    assert masking_of(worst, None) is masking_of(worst, {"parts": parts[:1]}) is None
    assert masking_of(worst, {"parts": parts}) == {
        "attacks": ["square", "other"], "broken": 2, "left_by_others": 5, "share": 0.25, "num_examples": 8,
    }  # fmt: skip


@pytest.mark.e2e
def test_a_version_that_begins_with_standard_gives_its_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (*COMPONENTS, Component("square-2", dataclasses.replace(COMPONENTS[1].attack, num_steps=40)))  # type: ignore[type-var]
    monkeypatch.setattr(versions, "components_of", lambda version, **_: COMPONENTS)
    short = lambda *given, **settings: auto_attack(*given, **settings | {"components": settings["components"] or more})
    monkeypatch.setattr(suite, "auto_attack", short)
    smooth = NETWORK._replace(logits_fn=tiny_function(), name="smooth")
    results = evaluate(tmp_path, smooth, auto_attack="plus", certify="none")
    found, parts = results["auto_attack"]["standard"], results["auto_attack"]["parts"]
    assert found["parts"] == ["apgd-ce", "square"]
    assert found["robust_accuracy"] == parts[1]["robust_accuracy"] >= results["auto_attack"]["robust_accuracy"]
    assert found["seconds"] == pytest.approx(parts[0]["seconds"] + parts[1]["seconds"])
    lines = [line.split("|")[1].strip() for line in (tmp_path / "report.md").read_text().splitlines() if "|" in line]
    first = lines.index("square")
    assert lines[first : first + 4] == ["square", "AutoAttack standard", "square-2", "AutoAttack plus"]
    assert results["masking"]["attacks"] == ["square", "square-2"] and results["certificates"] is None


def test_a_randomised_network_cannot_be_certified() -> None:
    with pytest.raises(ValueError, match="certify is 'crown'; expected none where auto_attack is rand"):
        EvaluationConfig(0.1, auto_attack="rand", certify="crown")


def test_the_methods_of_the_config_are_those_of_the_certificates() -> None:
    hints = dict(EvaluationConfig.__annotations__)
    assert hints["certify"].__args__ == ("none", *certified.METHODS)
