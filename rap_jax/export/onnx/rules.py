"""What JAX computes, as ONNX nodes: one rule for each primitive that a classifier of images consists of.

Images lie [N, H, W, C] in JAX and [N, C, H, W] in the graph, as runtimes compute convolutions: there is one
transposition, of the images that come in. A flattened image is therefore in another order than in JAX, and the rows of
the kernel that reads it are reordered instead of the image. Whatever depends on the weights alone is computed here and
now: BatchNorm in evaluation mode ends up inside the kernels."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend import core

from rap_jax._runtime.functions import closed
from rap_jax.export.onnx.graph import Graph
from rap_jax.models.layers.pool import max_pool

_CHANNELS_FIRST = (0, 3, 1, 2)
# What calls a function once. Other primitives with a jaxpr inside, such as scan, do more than that.
_CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A value of the graph."""

    name: str  # in the graph
    axes: tuple[int, ...]  # axis i of the graph's value is axis axes[i] of JAX's
    features: np.ndarray | None = None  # feature i (axis 1) of the graph's value is feature features[i] of JAX's


Value = Tensor | np.ndarray
Rule = Callable[[Graph, Any, Sequence[Any]], Value]


def image_input(graph: Graph, name: str) -> Tensor:
    """The input of the graph, [N, H, W, C], as the rules want it."""
    return Tensor(graph.add("Transpose", [name], perm=_CHANNELS_FIRST), _CHANNELS_FIRST)


def lower(graph: Graph, closed: Any, inputs: Sequence[Value]) -> list[Value]:
    """Appends the nodes of a closed jaxpr and returns its outputs.

    Raises:
      ValueError: it has a primitive, or a use of one, for which there is no rule; names it and the layer.
    """
    values: dict[Any, Value] = dict(zip(closed.jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
    values |= dict(zip(closed.jaxpr.invars, inputs, strict=True))
    read = lambda atom: np.asarray(atom.val) if isinstance(atom, core.Literal) else values[atom]
    for eqn in closed.jaxpr.eqns:
        values |= dict(zip(eqn.outvars, _lower_one(graph, eqn, [read(atom) for atom in eqn.invars]), strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def natural(graph: Graph, tensor: Tensor) -> Tensor:
    """The same value in JAX's order."""
    rank = len(tensor.axes)
    if tensor.features is not None:
        return Tensor(graph.add("Gather", [tensor.name, np.argsort(tensor.features)], axis=1), tensor.axes)
    if tensor.axes == tuple(range(rank)):
        return tensor
    back = [int(axis) for axis in np.argsort(tensor.axes)]
    return Tensor(graph.add("Transpose", [tensor.name], perm=back), tuple(range(rank)))


def _lower_one(graph: Graph, eqn: Any, inputs: list[Value]) -> Sequence[Value]:
    name = eqn.primitive.name
    if name in _CALLS:
        inner = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
        if _is_max_pool(eqn, inner) and isinstance(inputs[0], Tensor):
            return [_pool(graph, eqn, inputs, (2, 2), (2, 2))]
        return lower(graph, closed(inner), inputs)
    if not any(isinstance(value, Tensor) for value in inputs):
        return _of_constants(eqn, inputs)
    if name not in _RULES:
        raise _unsupported(eqn, f"known are {', '.join(sorted(_RULES))}")
    return [_RULES[name](graph, eqn, inputs)]


def _is_max_pool(eqn: Any, inner: Any) -> bool:
    """Whether a call computes what `models.pool.max_pool` does: by its program, as any function may have the name."""
    if eqn.params.get("name") != "max_pool" or len(eqn.invars) != 1 or len(eqn.invars[0].aval.shape) != 4:
        return False
    images = jax.ShapeDtypeStruct(eqn.invars[0].aval.shape, eqn.invars[0].aval.dtype)
    (call,) = jax.make_jaxpr(max_pool)(images).jaxpr.eqns
    return str(call.params["jaxpr"]) == str(inner)


def _of_constants(eqn: Any, inputs: Sequence[Any]) -> Sequence[Value]:
    name = eqn.primitive.name
    over_batch = [any(map(export.is_symbolic_dim, atom.aval.shape)) for atom in eqn.invars]
    if any(over_batch) and name not in _ELEMENTWISE:  # of such a constant only one row is there
        raise _unsupported(eqn, "expected a constant that is not repeated for each image")
    if name == "broadcast_in_dim" and any(map(export.is_symbolic_dim, eqn.params["shape"])):
        shape, sides = [1] * len(eqn.params["shape"]), eqn.params["shape"]  # ONNX repeats it for the batch by itself
        for axis, side in zip(eqn.params["broadcast_dimensions"], np.shape(inputs[0]), strict=True):
            shape[axis] = side
        known = [1 if export.is_symbolic_dim(side) else side for side in sides]
        return [np.broadcast_to(np.reshape(inputs[0], shape), known)]
    found = eqn.primitive.bind(*inputs, **eqn.params)
    return [np.asarray(array) for array in (found if eqn.primitive.multiple_results else [found])]


def _conv(graph: Graph, eqn: Any, inputs: Sequence[Any]) -> Value:
    images, kernel = inputs
    given, spec = eqn.params, eqn.params["dimension_numbers"]
    plain = given["batch_group_count"] == 1 and set(given["lhs_dilation"]) == {1} and isinstance(kernel, np.ndarray)
    if not plain or (spec.lhs_spec, spec.out_spec) != (_CHANNELS_FIRST, _CHANNELS_FIRST):
        raise _unsupported(eqn, "expected convolutions of [N, H, W, C] with a constant kernel")
    return _image(
        graph.add(
            "Conv",
            [_as_image(eqn, images), kernel.transpose(spec.rhs_spec)],
            scope=_scope(eqn),
            strides=given["window_strides"],
            pads=[sides[end] for end in (0, 1) for sides in given["padding"]],
            dilations=given["rhs_dilation"],
            group=given["feature_group_count"],
        )
    )


def _window_max(graph: Graph, eqn: Any, inputs: Sequence[Any]) -> Value:
    given = eqn.params
    window, strides = given["window_dimensions"], given["window_strides"]
    padding, dilations = (pair for pair in given["padding"] if any(pair)), given["base_dilation"]
    flat = len(window) == 4 and (window[0], window[3], strides[0], strides[3]) == (1, 1, 1, 1)
    if any(padding) or not flat or set((*dilations, *given["window_dilation"])) != {1}:
        raise _unsupported(eqn, "expected windows over height and width without padding")
    return _pool(graph, eqn, inputs, window[1:3], strides[1:3])


def _pool(graph: Graph, eqn: Any, inputs: Sequence[Any], window: Sequence[int], strides: Sequence[int]) -> Value:
    images = _as_image(eqn, inputs[0])
    return _image(graph.add("MaxPool", [images], scope=_scope(eqn), kernel_shape=window, strides=strides))


def _dense(graph: Graph, eqn: Any, inputs: Sequence[Any]) -> Value:
    hidden, kernel = inputs
    fits = eqn.params["dimension_numbers"] == (((1,), (0,)), ((), ())) and isinstance(kernel, np.ndarray)
    if not fits or not isinstance(hidden, Tensor) or kernel.ndim != 2 or len(hidden.axes) != 2:
        raise _unsupported(eqn, "expected [N, in] times a constant [in, out]")
    rows = kernel if hidden.features is None else kernel[hidden.features]
    return Tensor(graph.add("Gemm", [hidden.name, rows], scope=_scope(eqn)), (0, 1))


def _sum(graph: Graph, eqn: Any, inputs: Sequence[Any]) -> Value:
    if tuple(eqn.params["axes"]) != (1, 2) or inputs[0].axes != _CHANNELS_FIRST:
        raise _unsupported(eqn, "expected a sum over height and width")
    _, height, width, _ = eqn.invars[0].aval.shape
    pooled = graph.add("GlobalAveragePool", [inputs[0].name], scope=_scope(eqn))
    mean = graph.add("Flatten", [pooled], scope=_scope(eqn))
    # A mean is this sum, divided by the same number: `graph.fuse` removes both.
    return Tensor(graph.add("Mul", [mean, np.array(height * width, np.float32)], scope=_scope(eqn)), (0, 1))


def _reshape(graph: Graph, eqn: Any, inputs: Sequence[Any]) -> Value:
    (batch, *sides), shape = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if inputs[0].axes == _CHANNELS_FIRST and len(shape) == 2 and shape[0] == batch:
        order = np.arange(shape[1]).reshape(sides).transpose(2, 0, 1).reshape(-1)
        return Tensor(graph.add("Flatten", [inputs[0].name], scope=_scope(eqn)), (0, 1), order)
    sizes = np.array([-1 if export.is_symbolic_dim(side) else side for side in shape], np.int64)
    if (sizes == -1).sum() > 1:
        raise _unsupported(eqn, "expected one axis that follows the batch")
    given = natural(graph, inputs[0]).name
    made = Tensor(graph.add("Reshape", [given, sizes], scope=_scope(eqn)), tuple(range(len(shape))))
    return made if len(shape) != 4 else _image(graph.add("Transpose", [made.name], perm=_CHANNELS_FIRST))


def _elementwise(op: str) -> Rule:
    def rule(graph: Graph, eqn: Any, inputs: Sequence[Any]) -> Value:
        first = next(value for value in inputs if isinstance(value, Tensor))
        same = [v.axes == first.axes and v.features is first.features for v in inputs if isinstance(v, Tensor)]
        if not all(same):
            inputs = [natural(graph, v) if isinstance(v, Tensor) else v for v in inputs]
            first = next(v for v in inputs if isinstance(v, Tensor))
        given = [v.name if isinstance(v, Tensor) else _in_order_of(first, v) for v in inputs]
        return dataclasses.replace(first, name=graph.add(op, given, scope=_scope(eqn)))

    return rule


def _max(graph: Graph, eqn: Any, inputs: Sequence[Any]) -> Value:
    zeros = [value for value in inputs if isinstance(value, np.ndarray) and not value.any()]
    if not zeros:
        return _elementwise("Max")(graph, eqn, inputs)
    return _elementwise("Relu")(graph, eqn, [value for value in inputs if isinstance(value, Tensor)])


def _same(graph: Graph, eqn: Any, inputs: Sequence[Any]) -> Value:
    del graph
    if eqn.invars[0].aval.dtype != eqn.outvars[0].aval.dtype:
        raise _unsupported(eqn, "expected float32 throughout")
    tensor: Tensor = inputs[0]
    return tensor


_ELEMENTWISE = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "min": "Min", "neg": "Neg", "exp": "Exp",
                "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt", "abs": "Abs"}  # fmt: skip
_RULES: dict[str, Rule] = {
    "conv_general_dilated": _conv,
    "reduce_window_max": _window_max,
    "dot_general": _dense,
    "reduce_sum": _sum,
    "reshape": _reshape,
    "max": _max,
    "convert_element_type": _same,
    "copy": _same,
    "stop_gradient": _same,
} | {name: _elementwise(op) for name, op in _ELEMENTWISE.items()}


def _in_order_of(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """A constant that is combined with the tensor, in the tensor's order."""
    if array.ndim != len(tensor.axes):
        return array
    moved = array.transpose(tensor.axes)
    return moved if tensor.features is None or moved.shape[1] == 1 else moved[:, tensor.features]


def _as_image(eqn: Any, value: Any) -> str:
    if not isinstance(value, Tensor) or value.axes != _CHANNELS_FIRST:
        raise _unsupported(eqn, "expected images [N, H, W, C]")
    return value.name


def _image(name: str) -> Tensor:
    return Tensor(name, _CHANNELS_FIRST)


def _scope(eqn: Any) -> str:
    """The layer, such as group1_block0/conv1."""
    return "/".join(part for part in str(eqn.source_info.name_stack).split("/") if "(" not in part)


def _unsupported(eqn: Any, expected: str) -> ValueError:
    shapes = ", ".join(str(atom.aval) for atom in eqn.invars)
    where = f" in {_scope(eqn)}" if _scope(eqn) else ""
    return ValueError(
        f"The network computes {eqn.primitive.name}({shapes}){where}, which has no ONNX form here; {expected}. "
        f"--format=stablehlo takes every network."
    )
