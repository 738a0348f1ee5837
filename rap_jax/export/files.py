"""The file formats: a network is written to a new file, complete or not at all, and read back.

path = write_file(exported, "onnx", Path("network.onnx"))
network = open_file(path)    any of the formats but safetensors; see `launch.predict`
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rap_jax._runtime.environment import is_installed
from rap_jax._runtime.functions import exact_products
from rap_jax._runtime.integrity import write_atomically
from rap_jax._runtime.text import as_attack, as_interval
from rap_jax.config import FORMATS, SUFFIXES, require
from rap_jax.evaluation.network import FILE_SHA256, read_exported
from rap_jax.export.exported_network import ExportedNetwork, describe, network_of
from rap_jax.export.npz import npz_bytes, read_npz
from rap_jax.export.onnx.file import onnx_model, open_reference, open_session, with_checksum
from rap_jax.export.open_file import OpenFile
from rap_jax.export.safetensors import safetensors_bytes
from rap_jax.export.stablehlo import metadata_path, read_metadata, stablehlo_bytes
from rap_jax.models import FOLDED_AS

_TITLES = {"stablehlo": "StableHLO", "onnx": "ONNX", "npz": "npz", "safetensors": "safetensors"}
_HINTS = {
    "stablehlo": "Load it with jax.export.deserialize; attack it with python -m launch.evaluate --checkpoint={path}",
    "onnx": "Load it with onnxruntime alone: images float32 [batch, H, W, C] in [0, 1] -> logits.",
    "npz": "The arrays are compressed: zeros make the file small, but the network runs no faster by that.",
    "safetensors": "Load it into the PyTorch network with load_state_dict; its images are [batch, C, H, W].",
}
# Two programs for the same network differ by rounding, relative to the largest logit; a wrong one by more.
_SAME = 1e-3
_NUM_CHECKED = 16


def check_path(path: Path) -> Path:
    """The path, with its folder made.

    Raises:
      ValueError: there is a file already, or none can be written.
    """
    path = path.expanduser()
    for taken in (path, metadata_path(path)):
        if taken.exists():
            raise ValueError(f"{taken} exists; delete it, or choose another --out.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path.parent} cannot be made ({error.strerror}); choose another --out.") from error
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path.parent} cannot be written to; choose another --out.")
    return path


def write_file(exported: ExportedNetwork, file_format: str, path: Path, command: str = "") -> Path:
    """`write_and_compare` without the difference."""
    return write_and_compare(exported, file_format, path, command)[0]


def write_and_compare(
    exported: ExportedNetwork, file_format: str, path: Path, command: str = ""
) -> tuple[Path, float | None]:
    """Writes the network to a file of one of FORMATS, and beside a StableHLO file its metadata; compares the logits.

    The folder of the file is made. `command`, for the metadata, is what asks for the file.

    Returns:
      The path; how far the logits of the file are from those of the network, on random images, or None for safetensors,
      which nothing here can run.

    Raises:
      ValueError: an unknown format, a path that cannot be written or is taken, a package that is not installed, a
        network that the format cannot hold, or logits that differ by more than rounding: the file is gone then.
    """
    require(file_format in FORMATS, "format", file_format, f"one of {', '.join(FORMATS)}")
    suffix = SUFFIXES[file_format]
    require(path.suffix == suffix, "the file", str(path), f"a name that ends in {suffix} for {file_format}")
    path = check_path(path)
    metadata = json.loads(json.dumps(describe(exported, file_format, command)))
    content = _content(exported, file_format, metadata)
    try:
        if file_format == "stablehlo":
            about = metadata | {FILE_SHA256: hashlib.sha256(content).hexdigest()}
            write_atomically(metadata_path(path), json.dumps(about, indent=2) + "\n")
        write_atomically(path, content)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another --out.") from error
    return path, _compare(exported, path)


def open_file(path: str | Path) -> OpenFile:
    """Opens a file that `write_file` has written, by its suffix.

    Raises:
      ValueError: there is no such file, it is damaged, or its format cannot be opened here.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} is no file; expected one that python -m launch.export has written.")
    openers = {".jax": _open_stablehlo, ".onnx": open_session, ".npz": _open_npz}
    if path.suffix == SUFFIXES["safetensors"]:
        raise ValueError(
            f"{path} holds the weights of a PyTorch network and no network; load it there, or export the run again "
            f"with --format=onnx, npz or stablehlo."
        )
    require(path.suffix in openers, f"the suffix of {path}", path.suffix, f"one of {', '.join(openers)}")
    return openers[path.suffix](path)


def _compare(exported: ExportedNetwork, path: Path) -> float | None:
    """The largest difference of the logits; a file of others is deleted."""
    if path.suffix == SUFFIXES["safetensors"]:
        return None
    is_onnx = path.suffix == SUFFIXES["onnx"]
    try:
        return _largest_difference(
            exported, open_reference(path) if is_onnx and not is_installed("onnxruntime") else open_file(path)
        )
    except ValueError:
        for written in (path, metadata_path(path)):
            written.unlink(missing_ok=True)
        raise


def _largest_difference(exported: ExportedNetwork, network: OpenFile) -> float:
    images = np.random.default_rng(0).random((_NUM_CHECKED, *network.input_shape), np.float32)
    expected = np.asarray(jax.jit(exported.logits_fn)(images))
    difference = float(np.abs(network.logits_fn(images) - expected).max())
    if not difference <= _SAME * max(1.0, float(np.abs(expected).max())):
        raise ValueError(
            f"The file's logits differ from those of the network by {difference:.2g} on random images; expected "
            f"rounding alone. This is a mistake of the export: please report it, with the versions in the metadata."
        )
    return difference


def _content(exported: ExportedNetwork, file_format: str, metadata: dict[str, Any]) -> bytes:
    model = exported.model
    if file_format == "stablehlo":
        return stablehlo_bytes(exported.logits_fn, model.input_shape)
    if file_format == "npz":
        return npz_bytes(exported.weights, metadata)
    if file_format == "safetensors":
        name = exported.config.name
        require(not exported.folded or name in FOLDED_AS, "fold", True, "--nofold: the PyTorch network has BatchNorm")
        return safetensors_bytes(FOLDED_AS[name] if exported.folded else name, exported.weights, metadata)
    onnx = onnx_model(
        exported.logits_fn, input_shape=model.input_shape, num_classes=model.num_classes, metadata=metadata
    )
    return with_checksum(onnx.SerializeToString())


def _open_stablehlo(path: Path) -> OpenFile:
    exported = read_exported(path)
    shape = exported.input_shape
    if shape is None:
        raise ValueError(f"{path} takes images of any size; expected one of python -m launch.export.")
    run = jax.jit(exported.logits_fn)
    return OpenFile(lambda images: np.asarray(run(images)), shape, exported.num_classes, read_metadata(path))


def _open_npz(path: Path) -> OpenFile:
    model, weights, metadata = read_npz(path)
    run = jax.jit(exact_products(lambda images: model.logits(weights, images)))
    return OpenFile(lambda images: np.asarray(run(images)), model.input_shape, model.num_classes, metadata)


def about_network(exported: ExportedNetwork, file_format: str, path: Path, difference: float | None) -> Iterator[str]:
    """Lines for the terminal: the size of the file, the accuracy of its network, and how to load it.

    `difference` is that of its logits from those of the network; None if they were not compared.
    """
    yield f"{path}: {_TITLES[file_format]}, {path.stat().st_size:,} bytes"
    yield f"  {_size(exported)}"
    test = exported.results.get("test")
    yield f"  {_accuracy(test) if test else 'The run has no accuracy on the test set.'}"
    if difference is None:
        yield "  Not compared with the network: nothing here can run the file."
    else:
        yield f"  Read back, its logits on random images are within {difference:.1e} of the network's."
    yield f"  {_HINTS[file_format].format(path=path)}"


def _size(exported: ExportedNetwork) -> str:
    network = network_of(exported)
    num_left, num_before = network["num_params"], network["num_params_of_the_run"]
    removed = ", ".join(f"{layer} {number}" for layer, number in network["features"].items())
    words = f"{network['name']} of width {network['width']}, {num_left:,} of {num_before:,} parameters"
    return f"{words} (outputs left: {removed})" if removed else words


def _accuracy(test: dict[str, Any]) -> str:
    return (
        f"Test accuracy of the run: {as_interval(test, 'natural')} clean, {as_interval(test, 'robust')} under PGD "
        f"({as_attack(test['attack'])})"
    )
