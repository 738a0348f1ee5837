"""What the environment says of JAX changes no good run into a damaged one: 64 bits, strict promotion."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from exported_run import make_pruned_run
from tiers import nightly_but

from rap_jax.config import RunConfig
from rap_jax.evaluation.network import open_network
from rap_jax.export import FORMATS, open_exported_network, write_file
from rap_jax.export.files import SUFFIXES, open_file
from rap_jax.models.model import Weights
from rap_jax.runs.network import load_network, save_network
from rap_jax.training import pipeline


@contextlib.contextmanager
def x64_and_strict() -> Iterator[None]:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pruned_run(tmp_path_factory.mktemp("run") / "tiny")


@pytest.mark.parametrize("setting", [lambda: jax.enable_x64(True), x64_and_strict])
def test_a_good_network_is_good_under_every_setting(
    run: Path, setting: contextlib.AbstractContextManager[None]
) -> None:
    expected = load_network(run).weights
    with setting():
        found = load_network(run).weights
        network = open_network(str(run))
        logits = jax.jit(network.logits_fn)(jnp.zeros((2, 8, 8, 1), jnp.float32))
    assert logits.dtype == jnp.float32
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), found, expected)
    assert jax.tree.all(same)


@pytest.mark.parametrize("file_format", FORMATS)
def test_files_are_written_and_read_under_every_setting(run: Path, tmp_path: Path, file_format: str) -> None:
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    exported = open_exported_network(run)
    expected = np.asarray(jax.jit(exported.logits_fn)(images))
    with x64_and_strict():
        path = write_file(open_exported_network(run), file_format, tmp_path / f"network{SUFFIXES[file_format]}")
        if file_format != "safetensors":
            np.testing.assert_allclose(open_file(path).logits_fn(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_of_nan_is_refused_by_the_name_of_its_weight(tmp_path: Path, value: float) -> None:
    folder = make_pruned_run(tmp_path / "run")
    weights: Weights = jax.tree.map(np.array, load_network(folder).weights)
    weights.params["fc1"]["kernel"][1, 2] = value
    for path in sorted((folder / "network").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    save_network(folder, weights, initial=weights)
    message = "final/params/fc1/kernel of the network in .*run is NaN or infinite at 1 of [0-9]+ places"
    for reader in (load_network, open_network, open_exported_network):
        with pytest.raises(ValueError, match=message) as error:
            reader(str(folder))
        assert "delete" not in str(error.value)


def short(**changes: object) -> RunConfig:
    """The tiny run, one epoch a stage."""
    config = tiny.tiny_config(**changes)
    stages = {
        name: dataclasses.replace(getattr(config, name), num_epochs=1) for name in ("pretrain", "admm", "retrain")
    }
    return dataclasses.replace(config, **stages)


@pytest.mark.e2e
@pytest.mark.parametrize("first", nightly_but([x64_and_strict], [contextlib.nullcontext, x64_and_strict]))
def test_a_run_goes_on_under_another_setting(tmp_path: Path, first: type) -> None:
    """Begun with 64 bits and gone on with without, and the reverse; the checkpoints fit, and so do the weights."""
    config, devices = short(), jax.devices()[:1]
    second = x64_and_strict if first is contextlib.nullcontext else contextlib.nullcontext
    with first():
        pipeline.run(config, tiny.tiny_dataset(), tmp_path, output=tiny.EVERY_STEP, devices=devices)
    for name in ("results.json", "stages/admm.json", "stages/retrain.json"):
        (tmp_path / name).unlink()
    for name in ("network", "checkpoints/retrain", "checkpoints/admm/3"):  # as if stopped one step before the end
        shutil.rmtree(tmp_path / name)
    with second():
        results = pipeline.run(config, tiny.tiny_dataset(), tmp_path, output=tiny.EVERY_STEP, devices=devices)
        weights = load_network(tmp_path).weights
    assert not list(tmp_path.glob("checkpoints/*/damaged"))
    assert results["test"]["num_examples"] == 60
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {np.dtype(np.float32)}
