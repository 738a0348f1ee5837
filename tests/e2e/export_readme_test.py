"""The code of the docs that reads exported files runs as it stands there, where this package cannot be imported."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from exported_run import make_pruned_run, whole_logits_fn
from pages import DOCS, block_with

from rap_jax.export import open_exported_network, write_file

ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np

images = np.load("images.npy")
{code}
np.savez("found.npz", **{{name: globals()[name] for name in {results}}})
"""
PAGE = DOCS / "tutorials/compact_and_export.md"
OURS = {"rap_jax", "flax", "launch", "orbax", "optax", "tests"}


@pytest.fixture(scope="module", name="folder")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    run = make_pruned_run(folder / "run", irregular=True)
    exported = open_exported_network(run, compact=False)
    for name, suffix in (("stablehlo", "jax"), ("onnx", "onnx"), ("npz", "npz"), ("safetensors", "safetensors")):
        write_file(exported, name, folder / f"network.{suffix}")
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    logits_fn = whole_logits_fn(run)
    gradient = jax.jit(jax.grad(lambda x: logits_fn(x)[:, 0].sum()))(images)
    np.savez(folder / "expected.npz", logits=jax.jit(logits_fn)(images), gradient=gradient)
    np.save(folder / "images.npy", images)
    return folder


def alone(folder: Path, code: str, results: list[str], blocked: set[str]) -> dict[str, np.ndarray]:
    """What code gives in a process of its own that finds none of the blocked packages."""
    script = ALONE.format(code=code, results=results, blocked=sorted(OURS | blocked))
    found = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    with np.load(folder / "found.npz") as file:
        return {name: file[name] for name in file.files}


def expected(folder: Path, name: str) -> np.ndarray:
    with np.load(folder / "expected.npz") as file:
        array: np.ndarray = file[name]
    return array


def test_stablehlo_with_jax_alone(folder: Path) -> None:
    found = alone(folder, block_with(PAGE, "export.deserialize"), ["logits", "gradient"], {"onnx", "onnxruntime"})
    for name in ("logits", "gradient"):
        np.testing.assert_allclose(found[name], expected(folder, name), atol=1e-4)
    assert np.abs(found["gradient"]).max() > 1e-3


def test_onnx_with_onnxruntime_alone(folder: Path) -> None:
    found = alone(folder, block_with(PAGE, "import onnxruntime"), ["logits", "metadata"], {"jax", "onnx"})
    np.testing.assert_allclose(found["logits"], expected(folder, "logits"), atol=1e-4)
    assert json.loads(str(found["metadata"]))["format"] == "onnx"


def test_npz_with_numpy_alone(folder: Path, tmp_path: Path) -> None:
    exported = open_exported_network(folder / "run", compact=False)
    write_file(exported, "npz", tmp_path / "network.npz")
    np.save(tmp_path / "images.npy", np.zeros(1))
    found = alone(
        tmp_path, block_with(PAGE, 'file["metadata"]'), ["bias", "kernel", "metadata"], {"jax", "onnx", "onnxruntime"}
    )
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(found[name], exported.weights.params["fc1"][name])
    assert json.loads(str(found["metadata"]))["format"] == "npz"


def test_safetensors_in_pytorch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from torch_networks import torch_network

    monkeypatch.chdir(folder)
    network = torch_network("lenet_mnist", 1, (8, 8, 1))
    exec(block_with(PAGE, "load_state_dict"), {"network": network})
    with torch.no_grad():
        found = network(torch.from_numpy(np.load("images.npy").transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(found, expected(folder, "logits"), atol=1e-4)
