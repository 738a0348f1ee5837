"""A network from a file that `jax.export` wrote, as a function that attacks can take apart.

    shape = jax.export.symbolic_shape("b, 28, 28, 1")
    exported = jax.export.export(jax.jit(logits_fn))(jax.ShapeDtypeStruct(shape, "float32"))
    Path("network.jax").write_bytes(exported.serialize(vjp_order=1))

The file holds the network's weights and needs nothing of the code that made it. JAX maps no exported function over a
new axis (`vmap`); here that is a loop, since PGD maps over its restarts.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export
from jax.custom_batching import sequential_vmap

from rap_jax.batch_sizes import in_batches

_HOW = 'export.export(jax.jit(logits_fn))(jax.ShapeDtypeStruct(export.symbolic_shape("b, 28, 28, 1"), "float32"))'
# In FILE.json, the metadata that lie beside an exported file.
FILE_SHA256 = "file_sha256"
_FLOAT = np.dtype(np.float32)


class ExportedNetwork(NamedTuple):
    """What the file holds.

    Attributes:
      logits_fn: images [N, H, W, C] -> logits [N, K], for any N.
      input_shape: (H, W, C), None where the file leaves one of them open.
      num_classes: K.
      batch_size: of the file; 0 for any. With a fixed one, other batches are filled up or taken apart.
    """

    logits_fn: Callable[[jax.Array], jax.Array]
    input_shape: tuple[int, int, int] | None
    num_classes: int
    batch_size: int


def read_exported(path: Path) -> ExportedNetwork:
    """Reads a file of `jax.export`.

    Raises:
      ValueError: the file is no such file, or not the one that FILE.json beside it tells of; its function is not
        images -> logits in float32; it was made for another kind of device, or without the gradient.
    """
    content = path.read_bytes()
    about = _metadata(path)
    if about.get(FILE_SHA256) not in (None, hashlib.sha256(content).hexdigest()):
        raise ValueError(
            f"{path} is not the file that {path.name}.json tells of (SHA-256); copy both again, or export it again."
        )
    try:
        exported = export.deserialize(bytearray(content))
        if _version(about) != jax.__version__:  # a program that cannot be read here would only fail when it is run
            exported.mlir_module()
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        what = "expected a file written by exported.serialize(vjp_order=1) of jax.export, or the folder of a run"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path} cannot be read ({reason}); {what}. {about_age(about)}") from error
    _check(path, exported)
    batch, *shape = exported.in_avals[0].shape
    batch_size = 0 if export.is_symbolic_dim(batch) else int(batch)
    is_open = any(export.is_symbolic_dim(side) for side in shape)
    height, width, channels = shape
    return ExportedNetwork(
        logits_fn=in_batches(_differentiable(exported), batch_size) if batch_size else _differentiable(exported),
        input_shape=None if is_open else (int(height), int(width), int(channels)),
        num_classes=int(exported.out_avals[0].shape[1]),
        batch_size=batch_size,
    )


def _metadata(path: Path) -> dict[str, Any]:
    """What `launch.export` noted beside the file; {} where there is nothing.

    A damaged program may load, hang, or answer wrongly, so it is compared with the checksum in it.
    """
    try:
        found = json.loads(path.with_name(f"{path.name}.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def about_age(metadata: dict[str, Any]) -> str:
    """For how long a file of `jax.export` can be read, by which JAX this one was written, and what to do.

    Args:
      metadata: of the file, as `launch.export` writes them; {} where there are none.
    """
    written = f"JAX {_version(metadata)}" if _version(metadata) else "an unknown version of JAX"
    return (
        f"It was written by {written}, here is JAX {jax.__version__}: JAX reads such files for six months. Read it "
        f"with the JAX that wrote it, or export the run again by python -m launch.export; --format=npz and onnx do "
        f"not expire."
    )


def _version(metadata: dict[str, Any]) -> str | None:
    try:
        return str(metadata["exported"]["versions"]["jax"])
    except (KeyError, TypeError):
        return None


def _check(path: Path, exported: export.Exported) -> None:
    inputs, outputs = exported.in_avals, exported.out_avals
    trees: tuple[Any, Any] = (jax.tree.structure(((0,), {})), jax.tree.structure(0))
    one_each = trees == (exported.in_tree, exported.out_tree)
    shaped = one_each and len(inputs[0].shape) == 4 and len(outputs[0].shape) == 2
    if not shaped or export.is_symbolic_dim(outputs[0].shape[1]) or {inputs[0].dtype, outputs[0].dtype} != {_FLOAT}:
        raise ValueError(
            f"{path} holds a function of {', '.join(map(str, inputs))} to {', '.join(map(str, outputs))}; expected "
            f"images float32[b,h,w,c] to logits float32[b,k], with the weights inside, such as {_HOW}."
        )
    if not exported.has_vjp():
        raise ValueError(
            f"{path} was serialised without its gradient, so only Square could attack it, which is no evaluation; "
            f"expected exported.serialize(vjp_order=1)."
        )
    here = export.default_export_platform()
    if here not in exported.platforms or exported.nr_devices != 1:
        raise ValueError(
            f"{path} was exported for {exported.nr_devices} device(s) of {', '.join(exported.platforms)}; expected 1 "
            f'device of {here}: export.export(..., platforms=["{here}"]).'
        )


def _differentiable(exported: export.Exported) -> Callable[[jax.Array], jax.Array]:
    """The function and its gradient, of which both can be mapped over a new axis."""
    forward = sequential_vmap(exported.call)
    backward = sequential_vmap(lambda images, cotangent: jax.vjp(exported.call, images)[1](cotangent)[0])

    @jax.custom_vjp
    def logits_fn(images: jax.Array) -> jax.Array:
        return forward(images)

    logits_fn.defvjp(lambda images: (forward(images), images), lambda images, cotangent: (backward(images, cotangent),))
    return lambda images: logits_fn(images)
