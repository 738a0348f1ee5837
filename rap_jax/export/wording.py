"""What the commands say of a file, one line each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rap_jax._runtime.text import as_attack, as_interval, as_percent, as_radius
from rap_jax.export.exported_network import ExportedNetwork, network_of

_NAMES = {"stablehlo": "StableHLO", "onnx": "ONNX", "npz": "npz", "safetensors": "safetensors"}
_HINTS = {
    "stablehlo": "Load it with jax.export.deserialize; attack it with python -m launch.evaluate --checkpoint={path}",
    "onnx": "Load it with onnxruntime alone: images float32 [batch, H, W, C] in [0, 1] -> logits.",
    "npz": "Arrays with many zeros are packed: the file is small, but the network runs no faster by that.",
    "safetensors": "Load it into the PyTorch network with load_state_dict; its images are [batch, C, H, W].",
}


def about_network(exported: ExportedNetwork, file_format: str, path: Path, difference: float | None) -> Iterator[str]:
    """What was written, how small it is, how robust, and what to do with it.

    Args:
      exported: the network.
      file_format: of the file.
      path: the file.
      difference: of its logits from those of the network; None if they were not compared.
    """
    yield f"{path}: {_NAMES[file_format]}, {path.stat().st_size:,} bytes"
    yield f"  {_size(exported)}"
    test = exported.results.get("test")
    yield f"  {_accuracy(test) if test else 'The run has no accuracy on the test set.'}"
    if difference is None:
        yield "  Not compared with the network: nothing here can run the file."
    else:
        yield f"  Read back, its logits on random images are within {difference:.1e} of the network's."
    yield f"  {_HINTS[file_format].format(path=path)}"


def about_int8(path: Path, metadata: dict[str, Any]) -> Iterator[str]:
    """The quantised file, and what it withstands beside the float network."""
    measured = metadata["int8"]["measured"]
    names = {"clean": "clean", "transfer": "PGD images", "square": "Square", "robust": "both"}
    yield f"{path}: ONNX in 8 bits, {path.stat().st_size:,} bytes, calibrated on {metadata['int8']['calibrated_on']}"
    for which, title in (("file", "8 bits"), ("float", "float")):
        shares = [
            f"{word} {as_percent(measured[which][name])}" for name, word in names.items() if name in measured[which]
        ]
        yield f"  {title}: {', '.join(shares)}"
    threat = f"{measured['norm']}, epsilon {as_radius(measured['epsilon'])}"
    yield f"  On {measured['num_images']:,} test images, {threat}. {measured['note']}."


def _size(exported: ExportedNetwork) -> str:
    network = network_of(exported)
    left, whole = network["num_params"], network["num_params_of_the_run"]
    removed = ", ".join(f"{layer} {number}" for layer, number in network["features"].items())
    words = f"{network['name']} of width {network['width']}, {left:,} of {whole:,} parameters"
    return f"{words} (outputs left: {removed})" if removed else words


def _accuracy(test: dict[str, Any]) -> str:
    return (
        f"Test accuracy of the run: {as_interval(test, 'natural')} clean, {as_interval(test, 'robust')} under PGD "
        f"({as_attack(test['attack'])})"
    )
