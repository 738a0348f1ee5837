"""Runs that begin with another run's weights: gone on with, pruned further, or their initialisation inherited."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl import logging
from tiny import Watched

from rap_jax._runtime.integrity import read_checked, write_checked
from rap_jax.attacks.losses import cross_entropy
from rap_jax.compaction import fold_batch_norm
from rap_jax.config import STAGES, ModelConfig, PruneConfig, RunConfig, StageConfig, StartConfig
from rap_jax.models import create_model
from rap_jax.runs.network import load_network
from rap_jax.training import pipeline

pytestmark = pytest.mark.e2e

CONFIG = tiny.tiny_config()
NO_STAGE = StageConfig(0)
PRUNE = dataclasses.replace(CONFIG.prune, sparsity=(("conv*", 0.5), ("fc1", 0.5)))
SHORT = dataclasses.replace(CONFIG.retrain, num_epochs=1)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A LeNet of width 2 pruned by filters to half of it: the layers' outputs are those of width 1."""
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, width=2), prune=PRUNE)
    return tiny.run_and_watch(tmp_path_factory.mktemp("runs") / "pruned", config)


def config_from(pruned: Watched, **changes: Any) -> RunConfig:
    """A run of the same network with another seed that begins where `pruned` ended, unless `start` says otherwise."""
    given = {"start": StartConfig(str(pruned.folder)), "seed": 9, "pretrain": NO_STAGE, "admm": NO_STAGE} | changes
    return dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, width=2), **given)


def assert_same(actual: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def zeros_of(params: Any) -> dict[str, np.ndarray]:
    return {layer: np.asarray(arrays["kernel"]) == 0 for layer, arrays in params.items()}


def test_a_finished_run_leaves_its_network(pruned: Watched) -> None:
    saved = load_network(pruned.folder)
    assert_same(saved.weights, pruned.outcomes["retrain"].weights)
    images = tiny.tiny_dataset().test.images / np.float32(255)
    logits, _ = saved.model.apply(*saved.weights, jnp.asarray(images), False)
    right = (np.asarray(logits).argmax(1) == tiny.tiny_dataset().test.labels).mean()
    assert right == pytest.approx(pruned.results["test"]["natural_accuracy"])


def test_final_weights_are_gone_on_with(pruned: Watched, tmp_path: Path) -> None:
    config = config_from(pruned, retrain=SHORT, prune=PruneConfig(sparsity=()))
    found = tiny.run_and_watch(tmp_path / "run", config)
    assert_same(found.starts["retrain"], pruned.outcomes["retrain"].weights)
    assert list(found.results["stages"]) == ["start", "retrain"]
    start = found.results["stages"]["start"]
    # The same weights on the same images, though at other random starts of the attack.
    before = pruned.results["stages"]["retrain"]["validation"]
    assert start["validation"]["natural_accuracy"] == before["natural_accuracy"]
    assert "cut" not in start and len(found.results["start"].pop("sha256")) == 64
    assert found.results["start"] == {"weights": "final", "dataset": "tiny"}


@pytest.fixture(scope="module")
def thinned(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Single weights are gone: unlike those of a removed filter they have a gradient, and would grow again."""
    prune = PruneConfig(structure="irregular", sparsity=(("conv*", 0.5), ("fc1", 0.5)))
    config = dataclasses.replace(CONFIG, pretrain=SHORT, admm=NO_STAGE, retrain=SHORT, prune=prune)
    return tiny.run_and_watch(tmp_path_factory.mktemp("runs") / "thinned", config)


def test_zeros_stay_zero_when_more_is_pruned(thinned: Watched, tmp_path: Path) -> None:
    prune = PruneConfig(structure="irregular", sparsity=(("conv*", 0.7), ("fc1", 0.8)), dual_interval=1.0)
    admm = dataclasses.replace(CONFIG.admm, num_epochs=2)
    start = StartConfig(str(thinned.folder))
    config = dataclasses.replace(CONFIG, seed=9, start=start, pretrain=SHORT, admm=admm, retrain=SHORT, prune=prune)
    found = tiny.run_and_watch(tmp_path / "run", config)
    before = zeros_of(thinned.outcomes["retrain"].weights.params)
    for stage in STAGES:
        now = zeros_of(found.outcomes[stage].weights.params)
        assert all(now[layer][zeros].all() for layer, zeros in before.items())
    # The ratio counts what is gone already: half of the weights were zero.
    for layer, ratio in {"conv1": 0.7, "conv2": 0.7, "fc1": 0.8}.items():
        assert now[layer].mean() == pytest.approx(ratio, abs=0.02)


def inherited(pruned: Watched) -> StartConfig:
    return StartConfig(str(pruned.folder), weights="initial")


def test_initial_weights_are_inherited(pruned: Watched, tmp_path: Path) -> None:
    config = config_from(
        pruned, start=inherited(pruned), pretrain=SHORT, retrain=NO_STAGE, prune=PruneConfig(sparsity=())
    )
    found = tiny.run_and_watch(tmp_path / "run", config)
    start, first = found.starts["pretrain"].params, pruned.starts["pretrain"].params
    final = pruned.outcomes["retrain"].weights.params
    for layer, zeros in zeros_of(final).items():
        np.testing.assert_array_equal(np.asarray(start[layer]["kernel"]) == 0, zeros)
        kept = np.where(zeros, 0, np.asarray(first[layer]["kernel"]))
        np.testing.assert_array_equal(start[layer]["kernel"], kept)
        gone = zeros.reshape(-1, zeros.shape[-1]).all(0)
        np.testing.assert_array_equal(np.asarray(start[layer]["bias"])[gone], 0)
    for layer, zeros in zeros_of(found.outcomes["pretrain"].weights.params).items():
        assert zeros[zeros_of(start)[layer]].all()
    assert list(found.results["stages"]) == ["start", "pretrain"]
    trained = found.outcomes["pretrain"].weights.params["fc2"]["kernel"]
    assert (np.asarray(trained) != np.asarray(start["fc2"]["kernel"])).any()


def small_params(params: Any) -> dict[str, Any]:
    """The dense LeNet of width 1 inside one of width 2 whose filters are halved."""
    alive = {layer: ~zeros.reshape(-1, zeros.shape[-1]).all(0) for layer, zeros in zeros_of(params).items()}
    inputs = {"conv1": np.ones(1, bool), "conv2": alive["conv1"], "fc2": alive["fc1"]}
    inputs["fc1"] = np.tile(alive["conv2"], 4)  # 2x2 pixels are left of 8x8, channels last
    found = {}
    for layer, arrays in params.items():
        kernel = np.asarray(arrays["kernel"])[..., inputs[layer], :][..., alive[layer]]
        found[layer] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(np.asarray(arrays["bias"])[alive[layer]])}
    return found


def test_an_inheriting_network_is_a_dense_one_of_the_small_width(pruned: Watched) -> None:
    model_of = lambda width: create_model(ModelConfig(width=width), input_shape=(8, 8, 1), num_classes=10)
    large, small = model_of(2), model_of(1)
    config = config_from(pruned, start=inherited(pruned))
    mesh = pipeline.make_mesh(jax.devices()[:1])
    params = pipeline.make_start(config, tiny.tiny_dataset(), large, mesh).weights.params
    dense = small_params(params)
    assert jax.tree.map(jnp.shape, dense) == jax.tree.map(jnp.shape, jax.eval_shape(small.init, jax.random.key(0))[0])
    images = jnp.asarray(tiny.tiny_dataset().train.images[:32] / np.float32(255))
    labels = jnp.asarray(tiny.tiny_dataset().train.labels[:32])

    def loss(model: Any, params: Any) -> jax.Array:
        return cross_entropy(model.apply(params, {}, images, True)[0], labels).mean()

    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(large, p)))(params)
    small_value, small_gradient = jax.jit(jax.value_and_grad(lambda p: loss(small, p)))(dense)
    np.testing.assert_allclose(value, small_value, rtol=1e-5)
    kept = jax.tree.map(lambda g, w: jnp.where(w != 0, g, 0), gradient, params)
    square = lambda tree: sum(float((np.asarray(leaf) ** 2).sum()) for leaf in jax.tree.leaves(tree))
    # All of the gradient that the masks let through is that of the small network, in the same places.
    assert square(jax.tree.map(lambda layer: layer, small_gradient)) > 0
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        theirs = np.sort(np.asarray(small_gradient[layer]["kernel"]).ravel())
        nonzero = np.asarray(params[layer]["kernel"]) != 0
        ours = np.asarray(kept[layer]["kernel"])[nonzero]
        if layer == "conv1":
            np.testing.assert_allclose(np.sort(ours), theirs, atol=1e-6)
        else:  # weights that read removed filters are not zero, but their gradient is
            padded = np.sort(np.concatenate([theirs, np.zeros(len(ours) - len(theirs))]))
            np.testing.assert_allclose(np.sort(ours), padded, atol=1e-6)


def test_a_run_from_another_network_resumes_and_refuses_a_changed_start(pruned: Watched, tmp_path: Path) -> None:
    config = config_from(pruned, retrain=SHORT)
    dataset = tiny.tiny_dataset()
    results = pipeline.run(config, dataset, tmp_path / "run", output=tiny.AS_USUAL)
    assert pipeline.run(config, dataset, tmp_path / "run", output=tiny.AS_USUAL) == results
    # A third run may inherit what the first one drew, not what it had learnt.
    assert_same(load_network(tmp_path / "run").initial, pruned.starts["pretrain"])
    other = dataclasses.replace(config, start=inherited(pruned))
    with pytest.raises(ValueError, match=r"start\.weights: final in the folder, initial now"):
        pipeline.run(other, dataset, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(width=3)}, r"is lenet_mnist of width 2, .* expected lenet_mnist of width 3"),
        ({"start": StartConfig("/nowhere")}, "/nowhere holds no results.json; expected the folder of a run"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    pruned: Watched, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = dataclasses.replace(config_from(pruned), **changes)
    with pytest.raises(ValueError, match=message):
        pipeline.run(config, tiny.tiny_dataset(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_lenet_begins_with_the_folded_weights_of_one_with_batch_norm(tmp_path: Path) -> None:
    normed = dataclasses.replace(CONFIG.model, name="lenet_mnist_bn", width=2)
    prune = dataclasses.replace(PRUNE, structure="bn_filter")
    first = tiny.run_and_watch(tmp_path / "normed", dataclasses.replace(CONFIG, model=normed, prune=prune))
    saved = load_network(first.folder)
    folded = fold_batch_norm(saved.model, *saved.weights).weights
    filters = {layer: folded.params[layer]["kernel"].any((0, 1, 2)).sum() for layer in ("conv1", "conv2")}
    assert filters == {"conv1": 2, "conv2": 4}
    again = tiny.run_and_watch(tmp_path / "run", config_from(first, retrain=SHORT, prune=PruneConfig(sparsity=())))
    assert_same(again.starts["retrain"], folded)
    before = first.results["stages"]["retrain"]["validation"]["natural_accuracy"]
    assert again.results["stages"]["start"]["validation"]["natural_accuracy"] == before
    assert_same(load_network(again.folder).initial, fold_batch_norm(saved.model, *saved.initial).weights)
    other = dataclasses.replace(config_from(first), model=normed, start=StartConfig(str(again.folder)))
    with pytest.raises(ValueError, match="is lenet_mnist of width 2, .* expected lenet_mnist_bn of width 2"):
        pipeline.run(other, tiny.tiny_dataset(), tmp_path / "other")


def test_what_cannot_be_inherited_is_refused(pruned: Watched, tmp_path: Path) -> None:
    dataset = tiny.tiny_dataset()
    model = config_from(pruned).model
    config = dataclasses.replace(
        CONFIG, pretrain=SHORT, admm=NO_STAGE, retrain=NO_STAGE, prune=PruneConfig(sparsity=()), model=model
    )
    pipeline.run(config, dataset, tmp_path / "dense", output=tiny.AS_USUAL)
    config = config_from(pruned, start=StartConfig(str(tmp_path / "dense"), weights="initial"))
    with pytest.raises(ValueError, match="has no zeros; expected one that was pruned"):
        pipeline.run(config, dataset, tmp_path / "run")


def test_the_other_run_is_read_and_not_touched(pruned: Watched, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pruned.folder, tmp_path / "copy"))
    files = sorted(path for path in copy.rglob("*"))
    for path in (copy, *files):
        path.chmod(0o555 if path.is_dir() else 0o444)
    times = [path.stat().st_mtime_ns for path in files]
    assert_same(load_network(copy).weights, pruned.outcomes["retrain"].weights)
    assert_same(load_network(copy).initial, pruned.starts["pretrain"])
    assert sorted(copy.rglob("*")) == files and [path.stat().st_mtime_ns for path in files] == times


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_network_is_refused(pruned: Watched, tmp_path: Path, damage: str) -> None:
    copy = Path(shutil.copytree(pruned.folder, tmp_path / "copy"))
    if damage == "missing":
        shutil.rmtree(copy / "network")
    else:
        largest = max(
            (path for path in (copy / "network").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
        )
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        largest.write_bytes(data)
    missing, changed = "network is missing; copy it .*To have it made again", "cannot be used; .* is damaged"
    message = {"missing": missing, "changed": changed}[damage]
    with pytest.raises(ValueError, match=message):
        load_network(copy)
    shutil.rmtree(copy / "network", ignore_errors=True)  # what the message advises
    (copy / "results.json").unlink()
    config = dataclasses.replace(CONFIG, model=config_from(pruned).model, prune=PRUNE)
    pipeline.run(config, tiny.tiny_dataset(), copy, output=tiny.AS_USUAL)
    assert_same(load_network(copy).weights, pruned.outcomes["retrain"].weights)


def test_images_that_taught_the_other_run_must_not_judge_this_one(
    pruned: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(pruned.folder, tmp_path / "copy"))
    results = read_checked((copy / "results.json").read_text())
    results["data"] |= {"validation_seed": 1, "validation_fraction": 0.1}
    (copy / "results.json").write_text(write_checked(results))
    config = config_from(pruned, start=StartConfig(str(copy)), retrain=SHORT)
    other_split = dataclasses.replace(tiny.tiny_dataset(), validation_seed=9, validation_fraction=0.1)
    with pytest.raises(ValueError, match=r"Give --validation_seed=1 --validation_fraction=0\.1"):
        pipeline.run(config, other_split, tmp_path / "run")
    warnings: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: warnings.append(message % args))
    model = create_model(config.model, input_shape=(8, 8, 1), num_classes=10)
    same_split = dataclasses.replace(other_split, validation_seed=1)
    pipeline.make_start(config, same_split, model, pipeline.make_mesh())
    assert not [line for line in warnings if "learnt from" in line]
    pipeline.make_start(config, dataclasses.replace(other_split, sha256="other"), model, pipeline.make_mesh())
    assert "learnt from tiny. If images of it are held out from tiny here" in warnings[-1]
