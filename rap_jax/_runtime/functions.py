"""A user's function, taken apart: its captured arrays, its trace, its fingerprint, its batch size.

    lifted, captured = hoist_closure(logits_fn, images)     captured arrays as an argument
    program = trace(logits_fn, images)                      program.no_gradient, own_mesh(program.jaxpr)
    fingerprint(logits_fn, images.shape[1:])                hex, the same in every process of one installation
    in_batches(logits_fn, batch_size)                       for networks that take one batch size only
    evaluate(jaxpr, consts, arguments, rule)                its equations one by one, some of them in another way

A compiled program would hold captured weights as constants: compiled in, once for each program, and bound to the
devices on which they lie.

JAX 0.12 made one class of the jaxpr and of the closed jaxpr: `closed` and `inner_jaxprs` are the only places that know.
"""

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding

from rap_jax._runtime.integrity import digest


def without_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """The Python function under `jax.jit`; anything else as it is, a method under `jax.jit` too: it has a self."""
    is_wrapped = isinstance(function, jax.stages.Wrapped) and not inspect.ismethod(function)
    return function.__wrapped__ if is_wrapped else function  # type: ignore[attr-defined]


def exact_products(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same function, with products of float32 in float32, unless it asks for something else itself.

    By default a GPU multiplies them in TF32, of 10 bits, and a TPU in bfloat16, of 7: logits are then off by 1e-3 and
    more of their size, by highest precision by 1e-6. On a CPU both are the same. An attack may go by the quick
    products; what is said of an image, and a file that is shipped, may not.
    """

    def exact(*arguments: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    return exact


LogitsFn = Callable[..., jax.Array]
# What to do, by what an error says; the first that fits.
_HINTS = {
    "trace level": "A Flax NNX network changes its state in training mode: call model.eval() before.",
    "ModifyScopeVariable|is immutable|needs PRNG": (
        "A Flax network is in training mode: call it with train=False, or use_running_average=True for BatchNorm and "
        "deterministic=True for Dropout."
    ),
    "UnboundModule": "A Flax module needs its variables: lambda images: model.apply(variables, images).",
    "positional argument|required argument|too many arguments": (
        'version="rand" calls logits_fn(images, key), all others call logits_fn(images): use functools.partial for '
        "further arguments."
    ),
    r"returns a (tuple|list|dict)": "Take the logits out: lambda images: network(images)[0].",
    "Dtype mismatch": "Convert the images: lambda images: network(images.astype(dtype)).",
    r"shape\[0\] \(expected|reshape|divisible|[Ii]ncompatible shapes|batch": (
        "If it takes batches of one size only, pass that as batch_size."
    ),
    "": "Try it by jax.eval_shape with such an array, channels last.",
}


def in_batches(logits_fn: LogitsFn, batch_size: int) -> LogitsFn:
    """For any number of images a function that takes `batch_size`; the last batch is filled up with black ones."""

    def on_any(images: jax.Array, *draw: jax.Array) -> jax.Array:
        num_images, of_batch = len(images), lambda batch: logits_fn(batch, *draw)
        filled = jnp.pad(images, ((0, -num_images % batch_size), *[(0, 0)] * (images.ndim - 1)))
        batches = filled.reshape(-1, batch_size, *images.shape[1:])
        logits = of_batch(batches[0])[None] if len(batches) == 1 else lax.map(of_batch, batches)
        return logits.reshape(-1, logits.shape[-1])[:num_images]

    return on_any


def on_any_batch(
    logits_fn: LogitsFn, image_shape: tuple[int, ...], sizes: Sequence[int], *draw: jax.Array
) -> tuple[LogitsFn, int]:
    """`(function, K)`: `logits_fn` itself if it takes any number of images, else `in_batches` of a size that it takes.

    Args:
      logits_fn: images [N, *image_shape], and `draw` -> logits [N, K].
      sizes: that are tried, in this order.

    Raises:
      ValueError: it takes none of them; says why and what to do.
    """
    found = [_num_classes(logits_fn, size, image_shape, *draw) for size in sizes]
    for size, num_classes in zip(sizes, found, strict=True):
        if isinstance(num_classes, int):
            other = _num_classes(logits_fn, 2 if size == 1 else 1, image_shape, *draw)
            takes_any = size == sizes[0] and isinstance(other, int)
            return logits_fn if takes_any else in_batches(logits_fn, size), num_classes
    first = next(error for error in found if isinstance(error, Exception))
    raise _refused(first, (sizes[0], *image_shape)) from first


def _num_classes(logits_fn: LogitsFn, size: int, image_shape: tuple[int, ...], *draw: jax.Array) -> int | Exception:
    """K, or what it raises."""
    try:
        logits = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct((size, *image_shape), np.float32), *draw)
    except Exception as error:  # a user's function may raise anything
        return error
    return int(logits.shape[1])


def _refused(error: Exception, shape: tuple[int, ...]) -> ValueError:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    hint = next(hint for cause, hint in _HINTS.items() if re.search(cause, text))
    if isinstance(error, jax.errors.JAXTypeError):
        hint = "If it cannot be traced, call it by `jax.pure_callback`, and attack it with Square alone."
    return ValueError(
        f"logits_fn cannot be called with float32{list(shape)} ({text[:300]}); expected a JAX function of images "
        f"[N, H, W, C] that returns logits [N, K]. {hint}"
    )


Captured = list[jax.Array]


def hoist_closure(function: Callable[..., jax.Array], *arguments: Any) -> tuple[Callable[..., jax.Array], Captured]:
    """`(lifted, captured)` with `lifted(captured, *arguments) == function(*arguments)`, for arguments of any shape.

    Args:
      function: arrays -> an array. Under `jax.jit` itself, its Python function is used; what functions under `jax.jit`
        have captured that it calls stays a constant.
      arguments: arrays, or `jax.ShapeDtypeStruct`s, to trace it with.
    """
    # Not of any function: a decorator that `functools.wraps` has marked is part of what is computed.
    function = without_jit(function)
    captured = [found for found in jax.make_jaxpr(function)(*arguments).consts if isinstance(found, jax.Array)]
    places = {id(found): place for place, found in enumerate(captured)}

    def lifted(captured: Captured, *arguments: jax.Array) -> jax.Array:
        traced = jax.make_jaxpr(function)(*arguments)
        given = [captured[places[id(found)]] if id(found) in places else found for found in traced.consts]
        (output,) = jaxpr_as_fun(traced.replace(consts=given))(*arguments)
        return output

    return lifted, captured


class Traced(NamedTuple):
    """A network, taken apart."""

    jaxpr: Any  # of its logits and their gradient; of its logits alone if it has no gradient
    no_gradient: str  # why it has none, in the words of JAX; empty if it has one


def trace(logits_fn: Callable[..., jax.Array], *arguments: Any) -> Traced:
    """Traces a function of images, or (images, key), with arrays or `jax.ShapeDtypeStruct`s."""
    logits = jax.make_jaxpr(logits_fn)(*arguments)  # what it raises is no matter of the gradient
    try:
        return Traced(jax.make_jaxpr(add_gradient(logits_fn))(*arguments), "")
    except Exception as error:  # each kind of function without a gradient raises another one
        return Traced(logits, " ".join(f"{type(error).__name__}: {error}".split())[:200])


def add_gradient(logits_fn: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The function that returns its logits, and the gradient of their sum by its first argument."""

    def with_gradient(images: jax.Array, *draw: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, pull_back = jax.vjp(lambda x: logits_fn(x, *draw), images)
        return logits, pull_back(jnp.ones_like(logits))[0]

    return with_gradient


def closed(jaxpr: Any) -> Any:
    """The jaxpr with its constants, `.jaxpr` and `.consts`; none for one that has not been closed over any."""
    return jaxpr if hasattr(jaxpr, "consts") else core.ClosedJaxpr(jaxpr, ())


def inner_jaxprs(equation: Any) -> list[core.Jaxpr]:
    """The jaxprs that an equation holds, without their constants."""
    opened: Callable[[Any], Any] = lambda value: getattr(value, "jaxpr", value)
    is_jaxpr = lambda value: isinstance(opened(value), core.Jaxpr)
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
    return [opened(leaf) for leaf in leaves if is_jaxpr(leaf)]


# Primitives that compute the one jaxpr in them once; what they are called in its parameters.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}


def evaluate(
    jaxpr: core.Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    rule: Callable[[Any, list[Any]], Sequence[Any]],
    equations: Sequence[Any] | None = None,
) -> list[Any]:
    """The outputs of a jaxpr.

    Args:
      jaxpr, consts, arguments: as in a closed jaxpr.
      rule: computes the outputs of an equation from its inputs; such as `bind`.
      equations: those that are needed, in their order; None for all.
    """
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
    for eqn in jaxpr.eqns if equations is None else equations:
        outputs = rule(eqn, [read(atom) for atom in eqn.invars])
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(eqn: Any, inputs: Sequence[Any], **params: Any) -> Sequence[Any]:
    """The outputs of an equation as it is, but for `params` that replace its own."""
    with eqn.ctx.manager:  # the settings of JAX under which it was traced
        found = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params | params))
    return found if eqn.primitive.multiple_results else [found]


def own_mesh(jaxpr: Any) -> Mesh | None:
    """The mesh on which a function places what it computes, the largest of several; None if it places nothing.

    It does so by `with_sharding_constraint`, `shard_map`, `pmap`, `device_put` or shardings of a function under
    `jax.jit`, or since a mesh is set around all of it.
    """
    meshes = [mesh for mesh in (jax.sharding.get_mesh(), *named_meshes(jaxpr)) if not mesh.empty]
    return max(meshes, key=lambda mesh: mesh.size, default=None)


def relu_operand(eqn: Any) -> int | None:
    """Which operand of a maximum is compared with 0; None for any other equation."""
    if eqn.primitive.name != "max":
        return None
    is_zero = [isinstance(atom, core.Literal) and not np.any(atom.val) for atom in eqn.invars]
    return is_zero.index(False) if is_zero.count(True) == 1 else None


def is_relu_of_jax(eqn: Any) -> bool:
    """Whether it is `jax.nn.relu`: a `custom_jvp` of a call named relu, which is a maximum with 0 and nothing else."""
    only = lambda jaxprs: jaxprs[0].eqns[0] if len(jaxprs) == 1 and len(jaxprs[0].eqns) == 1 else None
    call = only(inner_jaxprs(eqn)) if eqn.primitive.name == "custom_jvp_call" else None
    inner = only(inner_jaxprs(call)) if call is not None and call.params.get("name") == "relu" else None
    return inner is not None and relu_operand(inner) is not None


def named_meshes(jaxpr: Any) -> Iterator[Mesh]:
    """Every mesh that an equation names, at any depth."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        for inner in inner_jaxprs(equation):
            yield from named_meshes(inner)
        for value in jax.tree.leaves(list(equation.params.values())):
            mesh = value.mesh if isinstance(value, NamedSharding) else value
            if isinstance(mesh, Mesh):
                yield mesh


def fingerprint(logits_fn: Callable[..., jax.Array], image_shape: tuple[int, ...], *draw: jax.Array) -> str:
    """Of a function images [N, *image_shape] -> logits, or (images, key) -> logits with `draw` = (key,)."""
    images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    lifted, captured = hoist_closure(logits_fn, images, *draw)
    without = trace(logits_fn, images, *draw).no_gradient

    def with_gradient(captured: Captured, images: jax.Array, *draw: jax.Array) -> Any:
        network = functools.partial(lifted, captured)
        return (network if without else add_gradient(network))(images, *draw)

    program = jax.jit(with_gradient).lower(captured, images, *draw).as_text()
    return hashlib.sha256(f"{program}{digest(captured)}".encode()).hexdigest()
