"""A network as a file of `jax.export`: weights and gradient inside, for any batch, on CPU, CUDA and TPU.

It is loaded with jax and flatbuffers alone, and it can be attacked as it is: `launch.evaluate --checkpoint=FILE`. What
cannot lie in the file lies beside it, in FILE.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from rap_jax._runtime.integrity import read_object

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo_bytes(logits_fn: Callable[[jax.Array], jax.Array], input_shape: tuple[int, int, int]) -> bytes:
    """The serialised function images float32 [N, H, W, C] -> logits [N, K], for any N, with its gradient."""
    shape = export.symbolic_shape(f"batch, {', '.join(map(str, input_shape))}")
    images = jax.ShapeDtypeStruct(shape, np.float32)
    return bytes(export.export(jax.jit(logits_fn), platforms=PLATFORMS)(images).serialize(vjp_order=1))


def metadata_path(path: Path) -> Path:
    """Where the metadata of a file lie."""
    return path.with_name(f"{path.name}.json")


def read_metadata(path: Path) -> dict[str, Any]:
    """What lies in FILE.json; {} where there is none.

    Raises:
      ValueError: it is damaged.
    """
    beside = metadata_path(path)
    try:
        return read_object(beside.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{beside} is damaged ({error}); delete it or export the network again.") from error
