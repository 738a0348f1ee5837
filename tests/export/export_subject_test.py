"""The network that is exported is as small as it can be, and still the same function."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from exported_run import make_pruned_run
from numpy_networks import random_weights
from safetensors import safe_open
from tiny_run import make_run

from rap_jax._runtime.integrity import read_checked, write_checked
from rap_jax.config import ModelConfig
from rap_jax.export import open_exported_network, read_npz, write_file
from rap_jax.export.exported_network import describe
from rap_jax.models import create_model, num_params
from rap_jax.models.model import Weights
from rap_jax.runs.network import load_network, save_network


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


def make_batch_norm_run(folder: Path) -> tuple[Path, Weights]:
    """The tiny run with a `lenet_mnist_bn` of random statistics, of whose conv2 two filters are removed."""
    make_run(folder)
    model = create_model(ModelConfig("lenet_mnist_bn", 1), input_shape=(8, 8, 1), num_classes=10)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    weights = Weights(*(random_weights(tree, seed) for seed, tree in enumerate(shapes)))
    for leaf in weights.params["conv2"].values():
        leaf[..., 1:3] = 0
    shutil.rmtree(folder / "network")
    save_network(folder, weights, initial=weights)
    results = read_checked((folder / "results.json").read_text())
    results["model"] |= {"name": "lenet_mnist_bn", "initializer": "default"}
    (folder / "results.json").write_text(write_checked(results))
    return folder, weights


def test_a_batch_norm_is_exported_as_biases(tmp_path: Path) -> None:
    """The file has the arrays of a `lenet_mnist`, and as many parameters; PyTorch's are those of its twin."""
    run, weights = make_batch_norm_run(tmp_path / "run")
    whole = open_exported_network(run, compact=False)
    plain = create_model(ModelConfig("lenet_mnist", 1), input_shape=(8, 8, 1), num_classes=10)
    about = describe(whole, "npz")["network"]
    assert about["num_params"] == num_params(jax.eval_shape(plain.init, jax.random.key(0)).params)
    assert about["num_params_of_the_run"] == about["num_params"] + 2 + 4 + 64
    read = read_npz(write_file(open_exported_network(run), "npz", tmp_path / "network.npz"))
    assert read.model.features == {"conv2": 2} and not read.weights.batch_stats
    images = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    expected = load_network(run).model.logits(weights, images)
    for model, given in ((read.model, read.weights), (plain, whole.weights)):
        np.testing.assert_allclose(jax.jit(model.logits)(given, images), expected, rtol=1e-5, atol=1e-5)
    with safe_open(write_file(whole, "safetensors", tmp_path / "network.safetensors"), "np") as file:
        names = {f"{layer}.{leaf}" for layer in whole.weights.params for leaf in ("weight", "bias")}
        assert set(file.keys()) == names
        np.testing.assert_array_equal(file.get_tensor("conv2.bias"), whole.weights.params["conv2"]["bias"])
    unfolded = open_exported_network(run, compact=False, fold=False)
    with safe_open(write_file(unfolded, "safetensors", tmp_path / "unfolded.safetensors"), "np") as file:
        assert "bn3.running_mean" in file.keys() and "fc1.bias" not in file.keys()


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
