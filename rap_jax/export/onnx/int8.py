"""An ONNX file with 8-bit weights and activations, by onnxruntime's own static quantiser.

Training images set the ranges of the activations (calibration); no test image is used. The robustness of the quantised
file is measured (`onnx.robustness`) and written into its metadata."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rap_jax._runtime.environment import optional_module
from rap_jax._runtime.integrity import write_atomically
from rap_jax._runtime.text import as_percent, as_radius
from rap_jax.config import AttackConfig, Int8Config, require
from rap_jax.data import Dataset, Split
from rap_jax.export.exported_network import ExportedNetwork, describe
from rap_jax.export.onnx.file import METADATA_KEY, onnx_model, open_session, with_checksum
from rap_jax.export.onnx.robustness import measure

_BATCH = 32
# The graph needs none of onnxruntime's pre-processing; without this mark its quantiser prints that it does.
_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}


def write_int8(
    exported: ExportedNetwork, dataset: Dataset, config: Int8Config, path: Path, command: str = ""
) -> dict[str, Any]:
    """Writes the quantised network, measured; returns its metadata, with `int8` in them.

    Raises:
      ValueError: onnx or onnxruntime is not installed, the network has no ONNX form, or the data are not those of the
        run.
    """
    check_data(exported, dataset)
    shape = exported.model.input_shape
    images, labels = _first(dataset.test, config.num_images)
    calibration, _ = _first(dataset.train, config.num_calibration_images)
    model = onnx_model(exported.logits_fn, input_shape=shape, num_classes=exported.model.num_classes, metadata={})
    quantized = quantize(model, calibration)
    attack = AttackConfig(**exported.results["config"]["report_attack"])
    measured = measure(
        open_session(quantized.SerializeToString()).logits_fn,
        exported.logits_fn,
        images,
        labels,
        attack,
        num_queries=config.num_queries,
        seed=config.seed,
    )
    about = {"calibrated_on": f"{len(calibration)} training images", "measured": measured | {"split": "test"}}
    metadata = describe(exported, "onnx", command) | {"int8": about}
    set_props(quantized, {METADATA_KEY: json.dumps(metadata)})
    write_atomically(path, with_checksum(quantized.SerializeToString()))
    return metadata


def about_int8(path: Path, metadata: dict[str, Any]) -> Iterator[str]:
    """Lines for the terminal: the quantised file, and its accuracies beside those of the float network."""
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


def check_data(exported: ExportedNetwork, dataset: Dataset) -> None:
    """Refuses other data than those of the run: what was held out there need not be held out elsewhere.

    Raises:
      ValueError: they are others.
    """
    of_run = exported.results["data"]
    same = dataset.sha256 == of_run.get("sha256")
    require(same, "the data", dataset.name, f"those of the run, {of_run['name']} of sha256 {of_run.get('sha256')}")


def quantize(model: Any, images: np.ndarray) -> Any:
    """The quantised form of an `onnx.ModelProto` of `onnx_model`, with its metadata.

    Training images, float32 [N, H, W, C] in [0, 1], set the ranges.

    Raises:
      ValueError: onnxruntime or onnx is not installed, or there are no images.
    """
    if not len(images):
        raise ValueError("There is no image to calibrate with; expected 1 or more training images.")
    onnx, quantization = optional_module("onnx"), optional_module("onnxruntime.quantization")
    props = {prop.key: prop.value for prop in model.metadata_props}
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    set_props(prepared, props | _PREPARED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            prepared,
            path,
            _reader(quantization, images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,  # x86 multiplies bytes of which one has no sign
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,  # 7 bits: without VNNI sums of two such products overflow in silence
        )
        found = onnx.load(path)
    set_props(found, props)
    return found


def set_props(model: Any, props: dict[str, str]) -> None:
    """Replaces the metadata of an `onnx.ModelProto`."""
    del model.metadata_props[:]
    optional_module("onnx.helper").set_model_props(model, props)


def _first(split: Split, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 in [0, 1] and their labels."""
    return split.images[:count].astype(np.float32) / np.float32(255), split.labels[:count]


def _reader(quantization: Any, images: np.ndarray) -> Any:
    batches: Iterator[np.ndarray] = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))

    class Reader(quantization.CalibrationDataReader):
        """Batches of images, as the quantiser asks for them."""

        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next batch, or None after the last."""
            batch = next(batches, None)
            return None if batch is None else {"images": batch}

    return Reader()
