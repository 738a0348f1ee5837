"""A whole evaluation: its files agree with each other and with the network, it goes on after a kill."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import nightly_but
from tiny_run import COMPONENTS, CONFIG, EPSILON, THREAT_MODEL, mislabelled, tiny_function

from rap_jax._runtime.integrity import read_checked
from rap_jax._runtime.interrupt import Interrupted
from rap_jax._runtime.mesh import make_mesh
from rap_jax.attacks.stepwise import run_attack
from rap_jax.attacks.stepwise_pgd import Pgd
from rap_jax.data import Split
from rap_jax.evaluation import robustness
from rap_jax.evaluation.diagnostics import check_confirmed, check_data, check_worst_case
from rap_jax.evaluation.network import AttackedNetwork
from rap_jax.evaluation.predictions import Predictor, take_sample
from rap_jax.evaluation.suite import Setup

pytestmark = pytest.mark.e2e

DATA = mislabelled()
SAMPLE = take_sample(DATA, "test", 40)


def network_of(name: str, seed: int) -> AttackedNetwork:
    return AttackedNetwork(name, tiny_function(seed), {"kind": "function", "checkpoint": name}, {"name": name})


@pytest.fixture(scope="module", name="network")
def make_network() -> AttackedNetwork:
    return network_of("first", 0)


@pytest.fixture(scope="module", name="other")
def make_other() -> AttackedNetwork:
    return network_of("second", 1)


class Done(NamedTuple):
    folder: Path
    results: dict[str, Any]
    examples: dict[str, np.ndarray]


def evaluate(folder: Path, network: AttackedNetwork, *sources: AttackedNetwork, **changes: Any) -> Done:
    config = dataclasses.replace(CONFIG, **{k: v for k, v in changes.items() if k in CONFIG.__dataclass_fields__})
    given = {"devices": jax.devices()[:2], "components": COMPONENTS, "command": "the command"}
    given |= {k: v for k, v in changes.items() if k not in CONFIG.__dataclass_fields__}
    results = robustness.evaluate_robustness(network, DATA, config, folder, sources=sources, **given)
    with np.load(folder / "examples.npz") as file:
        return Done(folder, results, {name: file[name] for name in file.files})


@pytest.fixture(scope="module", name="done")
def make_done(network: AttackedNetwork, other: AttackedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return evaluate(tmp_path_factory.mktemp("evaluations") / "done", network, other)


def without_time(results: dict[str, Any]) -> Any:
    drop = lambda tree: (
        {k: drop(v) for k, v in tree.items() if "seconds" not in k and k not in ("out_dir", "device")}
        if isinstance(tree, dict)
        else [drop(v) for v in tree]
        if isinstance(tree, list)
        else tree
    )
    return drop(results)


def test_the_folder_has_everything(done: Done) -> None:
    names = {path.name for path in done.folder.iterdir() if not path.name.startswith(".")}
    pictures = {"robustness.png", "examples.png"}
    assert names == {"config.json", "clean.npz", "parts", "results.json", "examples.npz", "report.md"} | pictures
    assert done.results == read_checked((done.folder / "results.json").read_text())
    assert done.results["versions"]["jax"] == jax.__version__ and done.results["device"] == "2 x cpu (cpu)"
    assert done.results["data"]["name"] == "tiny" and done.results["data"]["split"] == "test"
    assert done.results["images"] == "first 40 test images of tiny"
    assert done.results["config"] == dataclasses.asdict(CONFIG) | {"pgd_losses": ["ce", "margin"]}
    seconds = done.results["seconds"]
    assert min(seconds.values()) > 0
    assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total"))


def test_examples_are_what_the_network_says(done: Done, network: AttackedNetwork) -> None:
    found = done.examples
    np.testing.assert_array_equal(found["index"], np.arange(40))
    np.testing.assert_array_equal(found["label"], DATA.test.labels[:40])
    clean = np.asarray(network.logits_fn(jnp.asarray(SAMPLE.images)))
    perturbed = np.asarray(network.logits_fn(jnp.asarray(found["adversarial"])))
    np.testing.assert_array_equal(found["clean_prediction"], clean.argmax(-1))
    np.testing.assert_array_equal(found["prediction"], perturbed.argmax(-1))
    np.testing.assert_array_equal(found["broken_by"] == "clean", clean.argmax(-1) != SAMPLE.labels)
    np.testing.assert_array_equal(found["broken_by"] == "", perturbed.argmax(-1) == SAMPLE.labels)
    size = np.abs(found["adversarial"] - SAMPLE.images).max((1, 2, 3))
    np.testing.assert_allclose(found["size"], size, atol=1e-6)
    assert size.max() <= EPSILON + 1e-5 and found["adversarial"].min() >= 0 and found["adversarial"].max() <= 1
    np.testing.assert_array_equal(found["margin"] > 0, found["broken_by"] != "")
    assert (size[np.isin(found["broken_by"], ("", "clean"))] == 0).all()


def test_numbers_are_those_of_the_examples(done: Done) -> None:
    results, by = done.results, done.examples["broken_by"]
    assert results["combined"]["robust_accuracy"] == (by == "").mean()
    assert results["clean"]["natural_accuracy"] == (by != "clean").mean()
    assert 0 < results["combined"]["robust_accuracy"] < results["clean"]["natural_accuracy"]
    attacks = [results["pgd"], results["auto_attack"], *results["transfer"]]
    assert results["combined"]["robust_accuracy"] <= min(attack["robust_accuracy"] for attack in attacks)
    for attack in attacks:
        low, high = attack["robust_interval"]
        assert low <= attack["robust_accuracy"] <= high and attack["num_examples"] == 40
    for attack in (results["pgd"], results["auto_attack"]):
        assert attack["parts"][-1]["robust_accuracy"] == attack["robust_accuracy"]
    known = {"", "clean", "pgd-ce", "pgd-margin", "apgd-ce", "square", "transfer from second"}
    assert set(by) <= known and {"", "clean", "pgd-ce", "pgd-margin"} <= set(by)
    broken = ~np.isin(by, ("", "clean"))
    assert results["perturbation_sizes"]["largest"] == pytest.approx(done.examples["size"][broken].max())


def test_transferred_images_are_those_of_the_other_network(done: Done, other: AttackedNetwork) -> None:
    (transfer,) = done.results["transfer"]
    logits = np.asarray(other.logits_fn(jnp.asarray(SAMPLE.images)))
    assert transfer["source"]["natural_accuracy"] == (logits.argmax(-1) == SAMPLE.labels).mean()
    assert transfer["source"]["robust_accuracy"] < transfer["source"]["natural_accuracy"]
    assert transfer["name"] == "transfer from second"
    with np.load(done.folder / "parts" / "transfer_0.npz") as file:
        broken, adversarial = file["broken"], file["adversarial"]
    np.testing.assert_array_equal(adversarial[~broken], SAMPLE.images[~broken])


def test_a_network_transfers_to_itself(network: AttackedNetwork, tmp_path: Path) -> None:
    results = evaluate(tmp_path / "self", network, network, auto_attack="none").results
    (transfer,) = results["transfer"]
    assert transfer["source"]["robust_accuracy"] == transfer["robust_accuracy"] >= results["pgd"]["robust_accuracy"]
    assert results["auto_attack"] is None


def test_pgd_is_worst_case_over_restarts_and_losses(done: Done, network: AttackedNetwork) -> None:
    key = jax.random.fold_in(jax.random.key(0), 2)
    broken = np.zeros(40, bool)
    for number, loss in ((6, "ce"), (7, "margin")):
        attack = Pgd(THREAT_MODEL, 2.5 * EPSILON / 4, loss, num_steps=4, num_restarts=2)  # type: ignore[arg-type]
        images, labels = jnp.asarray(SAMPLE.images), jnp.asarray(SAMPLE.labels)
        found = run_attack(attack, network.logits_fn, images, labels, key=jax.random.fold_in(key, number))
        broken |= np.asarray(found.broken)
    assert done.results["pgd"]["robust_accuracy"] == (~broken).mean()


def test_given_attacks_are_not_called_standard(done: Done) -> None:
    assert done.results["auto_attack"]["name"] == "given attacks" and "standard" not in done.results["auto_attack"]


def test_pgd_on_one_loss(done: Done, network: AttackedNetwork, tmp_path: Path) -> None:
    found = evaluate(tmp_path / "margin", network, auto_attack="none", components=None, pgd_losses=("margin",)).results
    assert [part["name"] for part in done.results["pgd"]["parts"]] == ["pgd-ce", "pgd-margin"]
    assert [part["name"] for part in found["pgd"]["parts"]] == ["pgd-margin"]
    assert found["pgd"]["losses"] == found["config"]["pgd_losses"] == ["margin"]
    assert "on the margin" in (tmp_path / "margin" / "report.md").read_text()


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("looks", nightly_but([2, 9], [2, 9, 14, 25]))
def test_goes_on_after_a_kill(
    done: Done, network: AttackedNetwork, other: AttackedNetwork, tmp_path: Path, looks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    left = looks

    def on_look(setup: Setup, where: str) -> Callable[[], None]:
        def look() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        return look

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Setup, "on_look", on_look)
        evaluate(tmp_path / "killed", network, other)
    assert not (tmp_path / "killed" / "results.json").exists()
    again = evaluate(tmp_path / "killed", network, other)
    assert without_time(again.results) == without_time(done.results)
    for name, values in done.examples.items():
        np.testing.assert_array_equal(again.examples[name], values)


def test_a_signal_stops_it_between_two_programs(
    network: AttackedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(setup: Setup, where: str) -> Callable[[], None]:
        setup.interrupt.requested = 2
        return lambda: setup.interrupt.stop_if_requested(where)

    monkeypatch.setattr(Setup, "on_look", interrupted)
    with pytest.raises(Interrupted, match="stopped by SIGINT between two batches"):
        evaluate(tmp_path / "stopped", network)


def test_a_finished_one_attacks_nothing(
    done: Done, network: AttackedNetwork, other: AttackedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robustness, "all_attacks", None)
    (done.folder / "report.md").unlink()
    again = evaluate(done.folder, network, other)
    assert again.results == done.results and (done.folder / "report.md").exists()


def test_neither_devices_nor_batches_decide(
    done: Done, network: AttackedNetwork, other: AttackedNetwork, tmp_path: Path
) -> None:
    again = evaluate(tmp_path / "other", network, other, devices=jax.devices()[:1], batch_size=7)
    np.testing.assert_array_equal(again.examples["broken_by"], done.examples["broken_by"])
    np.testing.assert_allclose(again.examples["adversarial"], done.examples["adversarial"], atol=1e-3)


def test_another_evaluation_is_refused(done: Done, network: AttackedNetwork, other: AttackedNetwork) -> None:
    with pytest.raises(ValueError, match="evaluation.epsilon: 0.08 in the folder, 0.1 now"):
        evaluate(done.folder, network, other, epsilon=0.1)
    with pytest.raises(ValueError, match="evaluation.num_images: 40 in the folder, 30 now"):
        evaluate(done.folder, network, other, num_images=30)
    with pytest.raises(ValueError, match="network.name: first in the folder, second now"):
        evaluate(done.folder, other, other)
    with pytest.raises(ValueError, match="transfer_from: "):
        evaluate(done.folder, network)
    changed = network._replace(logits_fn=lambda images: 1.5 * network.logits_fn(images))
    stopped = network._replace(
        logits_fn=lambda images: network.logits_fn(jax.lax.stop_gradient(images)) + 0 * images.sum()
    )
    for another in (changed, stopped):
        with pytest.raises(ValueError, match="network.program and weights: "):
            evaluate(done.folder, another, other)
    of_a_run = {"kind": "run", "checkpoint": "first"}
    with pytest.raises(ValueError, match="network.program and weights: .* absent now"):
        evaluate(done.folder, network._replace(about=of_a_run), other)


def test_a_run_with_other_logits_is_refused(network: AttackedNetwork, tmp_path: Path) -> None:
    of_a_run = network._replace(about={"kind": "run", "checkpoint": "first"})
    evaluate(tmp_path, of_a_run, auto_attack="none", num_images=8)
    (tmp_path / "results.json").unlink()
    changed = of_a_run._replace(logits_fn=lambda images: 1.5 * network.logits_fn(images))
    with pytest.raises(ValueError, match="holds an evaluation of another network: first gives other logits now"):
        evaluate(tmp_path, changed, auto_attack="none", num_images=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits / 0, "first has logits that are NaN or infinite at 8 of 8 clean images"),
        (lambda logits: logits + jnp.sqrt(0 * logits), "first has gradients that are NaN or infinite at 8 of 8"),
    ],
)
def test_nan_is_refused_before_anything_is_written(
    network: AttackedNetwork, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    broken = network._replace(logits_fn=lambda images: change(network.logits_fn(images)))
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "new", broken)
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "new", network, broken)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["clean.npz", "parts/transfer_0.npz", "parts/pgd.npz", "parts/diagnostics.json"])
def test_a_damaged_file_is_named(
    done: Done, network: AttackedNetwork, other: AttackedNetwork, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(done.folder, folder)
    (folder / "results.json").unlink()
    (folder / name).write_bytes((folder / name).read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{name} is damaged .*; delete it to"):
        evaluate(folder, network, other)


def test_a_randomised_network(network: AttackedNetwork, tmp_path: Path) -> None:
    noisy = lambda images, key: network.logits_fn(images) + 0.1 * jax.random.normal(key, (len(images), 10))
    randomized = network._replace(logits_fn=noisy, name="noisy")
    results = evaluate(tmp_path / "rand", randomized, auto_attack="rand", components=rand_components()).results
    assert results["pgd"] is None and results["diagnostics"] is None and results["findings"] == []
    assert results["auto_attack"]["robust_accuracy"] < results["clean"]["natural_accuracy"]
    assert not (tmp_path / "rand" / "robustness.png").exists()
    assert "A randomised network is not examined" in (tmp_path / "rand" / "report.md").read_text()
    with pytest.raises(ValueError, match=r"first cannot be applied to images, key float32\[2, 8, 8, 1\]"):
        evaluate(tmp_path / "not", network, auto_attack="rand")


def rand_components() -> tuple[Any, ...]:
    return tuple(one._replace(attack=dataclasses.replace(one.attack, num_samples=2)) for one in COMPONENTS[:1])


def test_networks_that_do_not_fit_are_refused(network: AttackedNetwork, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"first takes images of \[8, 8, 3\], the data has images of \[8, 8, 1\]"):
        evaluate(tmp_path / "a", network._replace(input_shape=(8, 8, 3)))
    seven = network._replace(logits_fn=lambda images: network.logits_fn(images)[:, :7])
    with pytest.raises(ValueError, match=r"gives logits \[2, 7\] for 2 images, the data has 10 classes"):
        evaluate(tmp_path / "a", seven)
    with pytest.raises(ValueError, match="first cannot be applied to images .*TracerArrayConversionError"):
        evaluate(tmp_path / "a", network._replace(logits_fn=np.asarray))
    with pytest.raises(ValueError, match="pgd_num_steps is 0; expected 1 or more steps"):
        evaluate(tmp_path / "b", network, network, pgd_num_steps=0)


def test_a_predictor_refuses_what_left_the_ball(network: AttackedNetwork) -> None:
    predictor = Predictor(network, SAMPLE, THREAT_MODEL, make_mesh(jax.devices()[:1]), jax.random.key(0))
    outside = SAMPLE.images.copy()
    outside[3] = 1 - outside[3]
    with pytest.raises(ValueError, match=r"1 images get .*outside the linf ball of radius 0\.08"):
        predictor.predict(outside)
    assert predictor.predict(SAMPLE.images).size.max() == 0


def test_findings_of_an_evaluation() -> None:
    about = DATA.describe() | {"split": "validation"}
    assert check_data(None, about) == [] == check_data({"data": DATA.describe()}, about)
    assert check_data({"data": about | {"sha256": "0" * 64}}, about)[0].name == "other data"
    assert check_data({"data": about | {"validation_seed": 3}}, about)[0].name == "seen in training"
    assert check_data({"data": about | {"validation_seed": 3}}, about | {"split": "test"}) == []
    three, two = np.array([True, True, True, False]), np.array([True, False, True, False])
    assert check_confirmed("PGD", three, three) == []
    assert "1 of the 3 images of PGD" in check_confirmed("PGD", three, two)[0].text
    alone = {"name": "AutoAttack standard", "robust_accuracy": 0.75}
    assert check_worst_case(None, two) == [] == check_worst_case(alone, three)
    assert "broke 1 more images than AutoAttack standard (25.00% of all)" in check_worst_case(alone, two)[0].text


def test_a_sample_is_the_first_images() -> None:
    assert len(take_sample(DATA, "test", 0).labels) == len(take_sample(DATA, "test", 1000).labels) == 60
    assert take_sample(DATA, "validation", 0).words == "all 40 validation images of tiny"
    np.testing.assert_allclose(SAMPLE.images, DATA.test.images[:40] / np.float32(255), rtol=1e-6)


def test_images_sorted_by_class_are_taken_from_all_over() -> None:
    order = np.argsort(DATA.test.labels, kind="stable")
    by_class = dataclasses.replace(DATA, test=Split(DATA.test.images[order], DATA.test.labels[order]))
    found = take_sample(by_class, "test", 20)
    np.testing.assert_array_equal(found.labels, by_class.test.labels[::3])
    np.testing.assert_allclose(found.images, by_class.test.images[::3] / np.float32(255), rtol=1e-6)
    assert found.words == "evenly spaced 20 test images of tiny"
    np.testing.assert_array_equal(take_sample(by_class, "test", 0).labels, by_class.test.labels)


def test_a_network_that_places_itself_is_evaluated_where_it_lies(done: Done, tmp_path: Path) -> None:
    """The same network, which shards its images over a mesh of its own, one that PGD and AutoAttack know nothing of."""
    plain, mesh = tiny_function(0), jax.sharding.Mesh(np.array(jax.devices()[2:4]), ("own",))
    share = jax.NamedSharding(mesh, jax.P("own"))
    placed = lambda images: plain(jax.lax.with_sharding_constraint(images, share))
    network = AttackedNetwork("first", placed, {"kind": "function", "checkpoint": "placed"}, {"name": "placed"})
    found = evaluate(tmp_path / "placed", network)
    np.testing.assert_array_equal(found.examples["clean_prediction"], done.examples["clean_prediction"])
    assert found.results["pgd"]["robust_accuracy"] == done.results["pgd"]["robust_accuracy"]
