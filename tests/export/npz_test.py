"""npz files: weights are read back to the last bit, and damaged files are refused."""

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from exported_run import images_for, make_pruned_run, network

from rap_jax.export import open_exported_network, read_npz, write_file
from rap_jax.export.npz import npz_bytes


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    return (first.shape, first.dtype, first.tobytes()) == (second.shape, second.dtype, second.tobytes())


@pytest.mark.parametrize("name", ["lenet_mnist", "vgg16", "wide_resnet28"])
def test_weights_and_statistics_come_back(name: str, tmp_path: Path) -> None:
    model, weights = network(name)
    layer = {"lenet_mnist": "fc1", "vgg16": "conv7", "wide_resnet28": "conv1"}[name]
    kernel = weights.params[layer]["kernel"]
    kernel *= np.random.default_rng(0).random(kernel.shape) > 0.7
    kernel[0] = -0.0
    about = {"name": name, "width": 1, "initializer": "default", "input_shape": model.input_shape, "num_classes": 10}
    path = tmp_path / "network.npz"
    path.write_bytes(npz_bytes(weights, {"network": about | {"features": {}, "folded": False}}))
    found = read_npz(path)
    assert jax.tree.structure(found.weights) == jax.tree.structure(weights)
    assert all(map(same_bits, jax.tree.leaves(found.weights), jax.tree.leaves(weights)))
    images = images_for(name, 2)
    first, second = (
        jax.jit(lambda x, w, m=m: m.apply(*w, x, False)[0])(images, w) for m, w in (found[:2], (model, weights))
    )
    np.testing.assert_array_equal(first, second)


@pytest.fixture(scope="module", name="runs")
def make_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_pruned_run(folder / name, irregular=name == "irregular") for name in ("filters", "irregular")}


def test_zeros_make_the_file_small_and_removed_filters_are_not_in_it(runs: dict[str, Path], tmp_path: Path) -> None:
    sizes = {}
    for name, compact in (("filters", True), ("filters", False), ("irregular", True)):
        path = tmp_path / f"{name}{compact}.npz"
        exported = open_exported_network(runs[name], compact=compact)
        sizes[name, compact] = write_file(exported, "npz", path).stat().st_size
        found = read_npz(path)
        assert all(map(same_bits, jax.tree.leaves(found.weights), jax.tree.leaves(exported.weights)))
        assert found.metadata["network"]["features"] == ({"conv2": 2} if (name, compact) == ("filters", True) else {})
    assert sizes["irregular", True] < 0.85 * sizes["filters", False]
    assert sizes["filters", True] < sizes["filters", False]


def changed(content: bytes, **members: Any) -> bytes:
    with np.load(io.BytesIO(content)) as file:
        whole = {name: file[name] for name in file.files} | members
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in whole.items() if array is not None})
    return buffer.getvalue()


def test_what_cannot_be_read(runs: dict[str, Path], tmp_path: Path) -> None:
    content = write_file(open_exported_network(runs["irregular"]), "npz", tmp_path / "whole.npz").read_bytes()
    metadata = json.loads(str(np.load(io.BytesIO(content))["metadata"]))
    text = lambda **changes: np.array(json.dumps(metadata | changes))
    network = metadata["network"]
    objects = io.BytesIO()
    np.save(objects, np.array([{}]), allow_pickle=True)
    pickled = io.BytesIO()
    np.savez(pickled, metadata=np.array([{"a": 1}], dtype=object))
    damages = {
        "cut": (content[: len(content) // 2], "expected a file of python -m launch.export --format=npz"),
        "flipped": (content[:3000] + bytes(100) + content[3100:], "cannot be read"),
        "empty": (b"", "cannot be read"),
        "text": (b"no such file", "cannot be read"),
        "an array": (objects.getvalue(), "cannot be read"),
        "code": (pickled.getvalue(), "cannot be read .*allow_pickle=False"),
        "no metadata": (changed(content, metadata=None), "metadata is not a file in the archive"),
        "no JSON": (changed(content, metadata=np.array("{")), "cannot be read"),
        "no kernel": (changed(content, **{"fc1/kernel": None}), "fc1/kernel is missing, surplus or of another shape"),
        "surplus": (changed(content, **{"fc3/bias": np.zeros(3, np.float32)}), "fc3/bias is missing, surplus"),
        "shape": (changed(content, **{"fc1/bias": np.zeros(3, np.float32)}), "weights of its network: fc1/bias"),
        "dtype": (changed(content, **{"fc1/bias": np.zeros(64)}), "does not hold the weights of its network: fc1/bias"),
        "model": (changed(content, metadata=text(network=network | {"name": "net"})), "model name is 'net'"),
        "width": (changed(content, metadata=text(network=network | {"width": 2})), "does not hold the weights"),
    }
    for name, (damaged, message) in damages.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            read_npz(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_npz(tmp_path / "nowhere.npz")
