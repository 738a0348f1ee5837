"""The network that an evaluation attacks, wherever it comes from.

open_network("runs/lenet_mnist_mnist_seed0")     the folder of a finished run
open_network("my_code.nets:logits")              a function of the user's own
open_network("network.jax")                      a file written by `jax.export`

Such a file is written by

    shape = jax.export.symbolic_shape("b, 28, 28, 1")
    exported = jax.export.export(jax.jit(logits_fn))(jax.ShapeDtypeStruct(shape, "float32"))
    Path("network.jax").write_bytes(exported.serialize(vjp_order=1))

It holds the network's weights and needs nothing of the code that made it. JAX maps no exported function over a new
axis (`vmap`); here that is a loop, since PGD maps over its restarts.
"""

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.custom_batching import sequential_vmap

from rap_jax._runtime.functions import Captured, hoist_closure, in_batches, own_mesh, trace
from rap_jax._runtime.integrity import digest
from rap_jax.attacks.checks import LogitsFn, in_float32
from rap_jax.attacks.losses import cross_entropy
from rap_jax.compaction import compact
from rap_jax.models import Implementation, Model, num_params
from rap_jax.models.model import Weights
from rap_jax.runs.network import load_network

_HOW = 'export.export(jax.jit(logits_fn))(jax.ShapeDtypeStruct(export.symbolic_shape("b, 28, 28, 1"), "float32"))'
# In FILE.json, the metadata that lie beside an exported file.
FILE_SHA256 = "file_sha256"
_FLOAT = np.dtype(np.float32)


class ExportedFunction(NamedTuple):
    """What the file holds."""

    logits_fn: Callable[[jax.Array], jax.Array]  # images [N, H, W, C] -> logits [N, K], for any N
    input_shape: tuple[int, int, int] | None  # (H, W, C), None where the file leaves one of them open
    num_classes: int  # K
    batch_size: int  # of the file; 0 for any. With a fixed one, other batches are filled up or taken apart.


def read_exported(path: Path) -> ExportedFunction:
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
    return ExportedFunction(
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
    """For how long a file of `jax.export` with these metadata can be read, by which JAX it was written, what to do."""
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


_KINDS = "the folder of a finished run, module:function of a function images -> logits, or a file written by jax.export"

_FEW = 8
_CAUSES = (
    "The weights may be NaN or far too large.",
    "The logits are finite, so an operation has no gradient there: sqrt, log or a division at 0.",
)


class AttackedNetwork(NamedTuple):
    """A network in evaluation mode."""

    name: str  # short, for tables and folders
    # Images [N, H, W, C] in [0, 1] -> logits [N, K]; of a randomised network (images, key) -> logits.
    logits_fn: LogitsFn
    # What results.json says of it: kind, checkpoint (what the user named), and what is known of it.
    about: dict[str, Any]
    identity: dict[str, Any]  # what must be the same for an evaluation to be gone on with; knows no places
    input_shape: tuple[int, int, int] | None = None  # (H, W, C), or None if the network takes what it gets
    num_classes: int | None = None  # K, or None if only a call shows it
    batch_size: int = 0  # the only one that it takes without waste; 0 for any
    # What results.json of the run holds that the network comes from, if it comes from one.
    run: dict[str, Any] | None = None
    plain_fn: LogitsFn | None = None  # the same function in the form with the tightest bounds; None for `logits_fn`
    fast_on_cpu: bool = True  # whether attacks on a CPU go by `rap_jax.models.cpu_forms`


def open_network(checkpoint: str, *, implementation: Implementation = "auto") -> AttackedNetwork:
    """Opens what `checkpoint` names; to be called after the devices have been chosen.

    Args:
      checkpoint: see the module.
      implementation: how the convolutions are computed: of a run's network, and by attacks on any; with `xla` they are
        left as they are.

    Raises:
      ValueError: there is no such thing, it is damaged, or it is no network; says what was expected.
    """
    return _open(checkpoint, implementation)._replace(fast_on_cpu=implementation != "xla")


def _open(checkpoint: str, implementation: Implementation) -> AttackedNetwork:
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return _from_run(path, implementation)
    if path.is_file():
        return _from_file(path)
    module, _, function = checkpoint.partition(":")
    if not (function and all(part.isidentifier() for part in (*module.split("."), function))):
        raise ValueError(f"checkpoint is {checkpoint!r}, which does not exist; expected {_KINDS}.")
    return _from_function(module, function)


def check_fit(network: AttackedNetwork, image_shape: tuple[int, ...], num_classes: int, *, randomized: bool) -> None:
    """Refuses a network that does not fit data with images (H, W, C), before anything is computed.

    Raises:
      ValueError: it takes other images, gives other than [N, num_classes], or is no JAX function of images.
    """
    if network.input_shape is not None and network.input_shape != tuple(image_shape):
        raise ValueError(
            f"{network.name} takes images of {list(network.input_shape)}, the data has images of {list(image_shape)}; "
            f"expected the same: give the --dataset that the network was made for."
        )
    images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    draw = (jax.random.key(0),) if randomized else ()
    try:
        shape = jax.eval_shape(network.logits_fn, images, *draw).shape
    except Exception as error:  # a user's function may raise anything
        given = "images, key" if randomized else "images"
        reason = " ".join(str(error).split())[:300]
        hint = "" if randomized else "; one that also takes a key needs --auto_attack=rand"
        raise ValueError(
            f"{network.name} cannot be applied to {given} float32{list(images.shape)} ({type(error).__name__}: "
            f"{reason}); expected a JAX function {given} [N, H, W, C] -> logits [N, K]{hint}."
        ) from error
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(f"{network.name} gives {list(shape)} for 2 images; expected logits [2, {num_classes}].")
    if shape != (2, num_classes):
        raise ValueError(
            f"{network.name} gives logits {list(shape)} for 2 images, the data has {num_classes} classes; expected "
            f"[2, {num_classes}]: give the --dataset that the network was made for."
        )


def check_finite(network: AttackedNetwork, images: np.ndarray, labels: np.ndarray, *, randomized: bool) -> None:
    """Looks at a few images, before anything is written.

    Raises:
      ValueError: logits, or the gradient of the cross-entropy, are NaN or infinite.
    """
    few, right = images[:_FEW], jnp.asarray(labels[:_FEW])
    draw = (jax.random.key(0),) if randomized else ()
    logits_fn, captured = hoist_closure(network.logits_fn, few, *draw)
    places_itself = own_mesh(trace(network.logits_fn, few, *draw).jaxpr) is not None

    @jax.jit
    def look(captured: Captured, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, pull_back = jax.vjp(lambda x: logits_fn(captured, x, *draw), images)
        cotangent = jax.grad(lambda logits: cross_entropy(logits, right).sum())(logits)
        return logits, pull_back(cotangent)[0]

    finite = [
        np.isfinite(np.asarray(found)).reshape(len(few), -1).all(1)
        for found in look(captured if places_itself else jax.device_put(captured, jax.devices()[0]), few)
    ]
    for what, hint, holds in zip(("logits", "gradients"), _CAUSES, finite, strict=True):
        if not holds.all():
            raise ValueError(
                f"{network.name} has {what} that are NaN or infinite at {(~holds).sum()} of {len(few)} clean images; "
                f"expected finite ones. {hint}"
            )


def _from_run(folder: Path, implementation: Implementation) -> AttackedNetwork:
    saved = load_network(folder, implementation=implementation)
    model, weights = _smallest(saved.model, saved.weights)
    plain = model.replace(implementation="xla")
    about = {
        "kind": "run",
        "checkpoint": str(folder),
        "model": saved.results["model"],
        "num_params": num_params(saved.weights.params),
        "num_params_attacked": num_params(weights.params),
        "trained_on": saved.results["data"],
        "sparsity": saved.results.get("sparsity", {}).get("overall"),
        "sha256": digest(saved.weights),
    }
    return AttackedNetwork(
        name=folder.resolve().name,
        logits_fn=lambda images: model.logits(weights, images),
        about=about,
        identity={"kind": "run", "model": saved.results["model"], "sha256": about["sha256"]},
        input_shape=model.input_shape,
        num_classes=model.num_classes,
        run=saved.results,
        plain_fn=lambda images: plain.logits(weights, images),
    )


def _smallest(model: Model, weights: Weights) -> tuple[Model, Weights]:
    """The compacted network: the same function, quicker to attack. The network itself if a layer would vanish."""
    try:
        small = compact(model, *jax.tree.map(np.asarray, weights))
    except ValueError:
        return model, weights
    return small.model, small.weights


def _from_file(path: Path) -> AttackedNetwork:
    exported = read_exported(path)
    identity = {"kind": "jax.export", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return AttackedNetwork(
        name=path.stem,
        logits_fn=exported.logits_fn,
        about=identity | {"checkpoint": str(path)},
        identity=identity,
        input_shape=exported.input_shape,
        num_classes=exported.num_classes,
        batch_size=exported.batch_size,
    )


def _from_function(module_name: str, name: str) -> AttackedNetwork:
    checkpoint = f"{module_name}:{name}"
    if os.getcwd() not in sys.path:  # a console script does not look there
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        hint = "expected a module that can be imported, from the folder you are in or as a package"
        raise ValueError(f"{module_name} cannot be imported ({type(error).__name__}: {error}); {hint}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{module_name} has no function {name}; expected {_KINDS}.")
    identity = {"kind": "function", "function": checkpoint}
    return AttackedNetwork(
        name=f"{module_name}.{name}",
        logits_fn=in_float32(function),
        about=identity | {"checkpoint": checkpoint},
        identity=identity,
    )
