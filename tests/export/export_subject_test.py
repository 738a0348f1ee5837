"""The network that is exported is as small as it can be, and still the same function."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from exported_run import make_pruned_run
from tiny_run import make_run

from rap_jax._runtime.integrity import read_checked, write_checked
from rap_jax.config import ModelConfig
from rap_jax.export import open_exported_network, read_npz, write_file
from rap_jax.models import create_model
from rap_jax.models.model import Weights
from rap_jax.runs.network import save_network


def test_filters_that_send_nothing_or_that_nobody_reads_go(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    model = create_model(
        ModelConfig("lenet_mnist", 1, "kaiming_normal"), input_shape=(8, 8, 1), num_classes=10, implementation="xla"
    )
    weights: Weights = jax.tree.map(np.array, model.init(jax.random.key(3)))
    weights.params["conv2"]["kernel"][:, :, 1] = 0  # nobody reads filter 1 of conv1
    weights.params["fc1"]["kernel"][:, :5] = 0
    weights.params["fc1"]["bias"][:5] = 0
    weights.params["fc1"]["kernel"][:, 7] = 0  # sends its bias
    shutil.rmtree(tmp_path / "run" / "network")
    save_network(tmp_path / "run", weights, initial=weights)
    small, whole = (open_exported_network(tmp_path / "run", compact=compact) for compact in (True, False))
    assert small.features["conv1"] == 1 and whole.features == {}
    assert small.features["fc1"] in (58, 59)  # the constant may also move into the bias of fc2
    images = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    first, second = (jax.jit(exported.logits_fn)(images) for exported in (small, whole))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_library_writes_and_reads_files_too(tmp_path: Path) -> None:
    exported = open_exported_network(make_pruned_run(tmp_path / "run"))
    path = write_file(exported, "npz", tmp_path / "network.npz")
    assert read_npz(path).metadata["exported"]["command"] == ""
    with pytest.raises(ValueError, match=r"expected a name that ends in .onnx for onnx"):
        write_file(exported, "onnx", tmp_path / "other.npz")
    with pytest.raises(ValueError, match="format is 'zip'"):
        write_file(exported, "zip", tmp_path / "network.zip")


def test_a_run_without_a_test_and_without_names(tmp_path: Path) -> None:
    results = make_pruned_run(tmp_path / "run") / "results.json"
    found = read_checked(results.read_text())
    del found["test"]
    found["data"]["class_names"] = [f"class {number}" for number in range(10)]
    results.write_text(write_checked(found))
    path = write_file(open_exported_network(tmp_path / "run"), "npz", tmp_path / "network.npz")
    metadata = read_npz(path).metadata
    assert metadata["accuracy"]["robust"] is None and metadata["accuracy"]["split"] is None
    assert metadata["output"]["classes"][3] == "class 3"
