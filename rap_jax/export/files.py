"""The formats, and the file that a network is written to: whole or not at all, never over another one.

path = write_file(exported, "onnx", Path("network.onnx"))
network = open_file(path)                  any of the formats, for a look at it; see `launch.predict`
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rap_jax._runtime.integrity import write_atomically
from rap_jax.config import require
from rap_jax.evaluation.network import FILE_SHA256, read_exported
from rap_jax.export.exported_network import ExportedNetwork, describe
from rap_jax.export.npz import npz_bytes, read_npz
from rap_jax.export.onnx.file import onnx_model, open_reference, open_session, seal
from rap_jax.export.open_file import OpenFile
from rap_jax.export.optional import is_installed
from rap_jax.export.safetensors import safetensors_bytes
from rap_jax.export.stablehlo import metadata_path, read_metadata, stablehlo_bytes, write_metadata

SUFFIXES = {"stablehlo": ".jax", "onnx": ".onnx", "npz": ".npz", "safetensors": ".safetensors"}
FORMATS = tuple(SUFFIXES)
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
    """Writes the network, and beside a StableHLO file its metadata; reads it back and compares the logits.

    Args:
      exported: the network.
      file_format: one of FORMATS.
      path: the file; its folder is made.
      command: that asks for it, for the metadata.

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
            write_metadata(path, metadata | {FILE_SHA256: hashlib.sha256(content).hexdigest()})
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
        require(not exported.folded, "fold", True, "--nofold: the PyTorch network has its BatchNorm")
        return safetensors_bytes(exported.config.name, exported.weights, metadata)
    onnx = onnx_model(
        exported.logits_fn, input_shape=model.input_shape, num_classes=model.num_classes, metadata=metadata
    )
    return seal(onnx.SerializeToString())


def _open_stablehlo(path: Path) -> OpenFile:
    exported = read_exported(path)
    shape = exported.input_shape
    if shape is None:
        raise ValueError(f"{path} takes images of any size; expected one of python -m launch.export.")
    run = jax.jit(exported.logits_fn)
    return OpenFile(lambda images: np.asarray(run(images)), shape, exported.num_classes, read_metadata(path))


def _open_npz(path: Path) -> OpenFile:
    model, weights, metadata = read_npz(path)
    run = jax.jit(lambda images: model.apply(*weights, images, False)[0])
    return OpenFile(lambda images: np.asarray(run(images)), model.input_shape, model.num_classes, metadata)
