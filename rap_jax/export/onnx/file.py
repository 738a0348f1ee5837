"""A network as an ONNX file, written from what JAX would compute; no converter is needed to write it or to read it.

    model = onnx_model(logits_fn, input_shape=(28, 28, 1), num_classes=10, metadata={})
    session = open_session(path)
    logits = session.logits_fn(images)

Input `images` float32 [batch, H, W, C] in [0, 1], output `logits` [batch, K], any batch. The metadata lie in the file's
`metadata_props` under `rap_jax`.

The file ends with its SHA-256, so that a flipped bit in its weights is noticed. Joined protocol buffers are one
message, so the checksum is one more entry of metadata, which every reader of ONNX accepts. A file without one is not
checked.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from rap_jax._runtime.environment import optional_module
from rap_jax.export.onnx.graph import Graph, fuse
from rap_jax.export.onnx.rules import Tensor, image_input, lower, natural
from rap_jax.export.open_file import OpenFile

METADATA_KEY = "rap_jax"
_EXPECTED = "expected an ONNX file with the input images float32 [batch, H, W, C] and the output logits [batch, K]"
_KEY = b"rap_jax_sha256"
_HEX = 64
# metadata_props is field 14 of a ModelProto, a message with the strings key (1) and value (2).
_FIELD, _STRING_1, _STRING_2 = 14 << 3 | 2, 1 << 3 | 2, 2 << 3 | 2
_ENTRY = bytes([_STRING_1, len(_KEY)]) + _KEY + bytes([_STRING_2, _HEX])
_PREFIX = bytes([_FIELD, len(_ENTRY) + _HEX]) + _ENTRY


def with_checksum(content: bytes) -> bytes:
    """The serialised model with its SHA-256 as the last entry of its metadata."""
    return content + _PREFIX + hashlib.sha256(content).hexdigest().encode()


def _check_checksum(name: str, content: bytes) -> None:
    """Compares the checksum, if there is one, with the content before it; a `ValueError` where they differ."""
    end = len(content) - len(_PREFIX) - _HEX
    if end < 0 or content[end : end + len(_PREFIX)] != _PREFIX:
        return
    if hashlib.sha256(content[:end]).hexdigest().encode() != content[-_HEX:]:
        raise ValueError(
            f"{name} is not what was written, by its SHA-256. If it is damaged, copy it or export it again; if it was "
            f"changed on purpose, delete its metadata {_KEY.decode()}."
        )


def onnx_model(
    logits_fn: Callable[[jax.Array], jax.Array],
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    metadata: dict[str, Any],
) -> Any:
    """The `onnx.ModelProto` of a function of images [N, H, W, C] with its weights inside.

    Raises:
      ValueError: onnx is not installed, or the function has a primitive without a rule in `onnx.rules`.
    """
    optional_module("onnx")
    shape = export.symbolic_shape(f"batch, {', '.join(map(str, input_shape))}")
    closed = jax.make_jaxpr(logits_fn)(jax.ShapeDtypeStruct(shape, np.float32))
    graph = Graph()
    (logits,) = lower(graph, closed, [image_input(graph, "images")])
    if not isinstance(logits, Tensor):
        raise ValueError("The logits do not depend on the images; expected a network.")
    name = natural(graph, logits).name
    fuse(graph)
    props = {METADATA_KEY: json.dumps(metadata)}
    return graph.to_model(images=input_shape, logits=name, num_classes=num_classes, metadata=props)


def open_session(path: Path | bytes, num_threads: int = 0) -> OpenFile:
    """Opens an ONNX file on the CPU.

    Args:
      path: the file, or its content.
      num_threads: of onnxruntime; 0 for all cores.

    Raises:
      ValueError: onnxruntime is not installed, or the file is damaged or no network of images.
    """
    runtime = optional_module("onnxruntime")
    name, content = ("The file", path) if isinstance(path, bytes) else (str(path), path.read_bytes())
    _check_checksum(name, content)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        props = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} cannot be read ({type(error).__name__}: {reason}); {_EXPECTED}.") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = inputs[0].shape[1:] if len(inputs) == 1 else []
    if len(shape) != 3 or not all(isinstance(side, int) for side in shape) or len(outputs[0].shape) != 2:
        raise ValueError(f"{name} takes {[(i.name, i.shape) for i in inputs]}; {_EXPECTED}.")
    height, width, channels = shape
    return OpenFile(
        logits_fn=lambda images: session.run(None, {inputs[0].name: np.asarray(images, np.float32)})[0],
        input_shape=(height, width, channels),
        num_classes=int(outputs[0].shape[1]),
        metadata=_metadata(name, props),
    )


def open_reference(path: Path) -> OpenFile:
    """Opens an ONNX file that `onnx_model` has made with the evaluator of the package onnx: slow, but always there.

    Raises:
      ValueError: onnx is not installed.
    """
    onnx, reference = optional_module("onnx"), optional_module("onnx.reference")
    model = onnx.load(path)
    sizes = lambda value: [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    height, width, channels = sizes(model.graph.input[0])
    (num_classes,) = sizes(model.graph.output[0])
    evaluator = reference.ReferenceEvaluator(model)
    return OpenFile(
        logits_fn=lambda images: evaluator.run(None, {"images": np.asarray(images, np.float32)})[0],
        input_shape=(height, width, channels),
        num_classes=num_classes,
        metadata={},
    )


def _metadata(name: str, props: dict[str, str]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(props.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise ValueError(f"The metadata of {name} are damaged ({error}); export it again.") from error
    return found
