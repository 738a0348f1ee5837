"""A network as affine functions and maxima: what bounds are computed of, read from the jaxpr of any JAX function.

Everything that a ReLU network computes of its images is affine (convolutions, products with weights, sums, means,
BatchNorm in evaluation mode, reshaping) or a maximum of two arrays: relu(x) = max(x, 0), min(x, y) = -max(-x, -y),
|x| = max(x, -x), and a maximum over a window is a tree of them. What depends on no image is a constant.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from rap_jax._runtime.functions import closed


class Images(NamedTuple):
    """The images, with which a graph begins."""

    shape: tuple[int, ...]


class Affine(NamedTuple):
    """An affine function of the nodes `operands`."""

    shape: tuple[int, ...]
    operands: tuple[int, ...]
    operand_shapes: tuple[tuple[int, ...], ...]
    apply: Callable[..., jax.Array]  # of arrays of the operands' shapes
    radius: Callable[..., jax.Array]  # of half-widths of the operands: that of the result
    has_offset: bool  # whether it is something else than 0 at 0


class Maximum(NamedTuple):
    """max(first, second); the second may be a constant."""

    shape: tuple[int, ...]
    first: int
    second: int | None
    constant: jax.Array | None


Node = Images | Affine | Maximum


class Graph(NamedTuple):
    """Nodes in an order in which they can be computed; the first one is the images, the last one the logits."""

    nodes: tuple[Node, ...]


class _Reference(NamedTuple):
    """A value that depends on the images."""

    node: int


class _Comparison(NamedTuple):
    """`larger > smaller` of values that depend on the images: a maximum, where it selects one of the two."""

    larger: Any
    smaller: Any


class _IsNan(NamedTuple):
    """A test for NaN, which fails."""


# Primitives that copy, move or sum entries: their coefficients are 0 and 1.
_MOVES = frozenset(
    "reshape transpose broadcast_in_dim squeeze expand_dims slice pad concatenate stack tile reduce_sum "
    "reduce_window_sum rev gather dynamic_slice convert_element_type copy copy_p optimization_barrier "
    "sharding_constraint select_n cumsum split unstack".split()
)
_SUMS = frozenset(("add", "sub", "add_any", "neg"))
# Linear in one operand where the others are constants.
_PRODUCTS = frozenset(("mul", "div", "dot_general", "conv_general_dilated"))
_MAXIMA = frozenset(("max", "min", "abs", "clamp", "reduce_max", "reduce_min", "reduce_window_max"))
# Primitives that compute the one jaxpr in them once; what they are called in its parameters.
_CALLS = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "closed_call": "call_jaxpr",
          "core_call": "call_jaxpr", "jit": "jaxpr", "pjit": "jaxpr", "remat2": "jaxpr",
          "checkpoint": "jaxpr"}  # fmt: skip
_IS_GREATER = {"gt": True, "ge": True, "lt": False, "le": False}


def graph_of(function: Callable[[jax.Array], jax.Array], images: jax.Array | jax.ShapeDtypeStruct) -> Graph:
    """The graph of a function images [N, ...] -> logits [N, K].

    Raises:
      ValueError: it does something with the images that is neither affine nor a maximum; names the primitive.
    """
    jaxpr = jax.make_jaxpr(function)(images)
    reader = _Reader(tuple(images.shape))
    (output,) = reader.read(jaxpr.jaxpr, jaxpr.consts, [_Reference(0)])
    if not isinstance(output, _Reference):
        raise ValueError("The logits do not depend on the images; expected a function images -> logits.")
    if output.node != len(reader.nodes) - 1:
        reader.add_linear(output, lambda x: x)
    return Graph(tuple(reader.nodes))


class _Reader:
    """Reads equations, and adds a node for each that depends on the images."""

    def __init__(self, shape: tuple[int, ...]):
        self.nodes: list[Node] = [Images(shape)]

    def read(self, jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """The values of the outputs, constants or references."""
        values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
        value_of = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
        for eqn in jaxpr.eqns:
            found = self._read_one(eqn, [value_of(atom) for atom in eqn.invars])
            values |= dict(zip(eqn.outvars, found, strict=True))
        return [value_of(atom) for atom in jaxpr.outvars]

    def _read_one(self, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        if not any(isinstance(value, _Reference | _Comparison | _IsNan) for value in inputs):
            if any(map(_is_traced, inputs)):
                return _bind(eqn, inputs)
            with jax.ensure_compile_time_eval():  # so that constants can be compared
                return _bind(eqn, inputs)
        if name in _CALLS:
            called = closed(eqn.params[_CALLS[name]])
            return self.read(called.jaxpr, called.consts, inputs)
        if name in ("ne", "or", *_IS_GREATER):
            return [_compared(name, *inputs)]
        if name == "select_n" and isinstance(inputs[0], _Comparison):
            return [self._selected(*inputs)]
        if name in _MAXIMA:
            return [self._maximum_of(name, eqn.params, inputs)]
        return self._affine(eqn, inputs)

    def add_linear(self, operand: _Reference, function: Callable[[jax.Array], jax.Array]) -> _Reference:
        """The node of a function that moves or copies entries."""
        shape = jax.eval_shape(function, self._like(operand)).shape
        return self._add_affine(shape, [operand.node], function, function)

    def _negative(self, operand: _Reference) -> _Reference:
        shape = self.nodes[operand.node].shape
        return self._add_affine(shape, [operand.node], jnp.negative, lambda size: size)

    def _add_affine(
        self,
        shape: tuple[int, ...],
        operands: Sequence[int],
        apply: Callable[..., jax.Array],
        radius: Callable[..., jax.Array],
        *,
        has_offset: bool = False,
    ) -> _Reference:
        shapes = tuple(self.nodes[number].shape for number in operands)
        return self._add(Affine(shape, tuple(operands), shapes, apply, radius, has_offset))

    def _add(self, node: Node) -> _Reference:
        self.nodes.append(node)
        return _Reference(len(self.nodes) - 1)

    def _like(self, operand: _Reference) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.nodes[operand.node].shape, jnp.float32)

    def _affine(self, eqn: Any, inputs: list[Any]) -> list[_Reference]:
        """The outputs of an equation that is affine in its references."""
        name = eqn.primitive.name
        places = [place for place, value in enumerate(inputs) if isinstance(value, _Reference)]
        constants = [value for place, value in enumerate(inputs) if place not in places]
        is_product = name in _PRODUCTS and len(places) == 1 and (name != "div" or places == [0])
        if not (is_product or name in _MOVES | _SUMS) or any(map(_is_test, inputs)) or not _gives_floats(eqn):
            raise _refused(name)
        apply = _with_operands(eqn, inputs, places)
        radius = _with_operands(eqn, [_of_radius(value, is_product) for value in inputs], places)
        if name in _SUMS:
            radius = lambda *sizes: [functools.reduce(jnp.add, sizes)]
        has_offset = not is_product and any(jnp.issubdtype(jnp.result_type(each), jnp.floating) for each in constants)
        shapes = [outvar.aval.shape for outvar in eqn.outvars]
        numbers = [inputs[place].node for place in places]
        one = lambda function, output: lambda *arrays: function(*arrays)[output]
        return [
            self._add_affine(shape, numbers, one(apply, output), one(radius, output), has_offset=has_offset)
            for output, shape in enumerate(shapes)
        ]

    def _maximum_of(self, name: str, params: Mapping[str, Any], inputs: list[Any]) -> _Reference:
        """What is made of maxima: see the top of this file."""
        if any(map(_is_test, inputs)):
            raise _refused(name)
        if name in ("max", "min"):
            return self._extremum(*inputs, is_largest=name == "max")
        if name == "abs":
            return self._extremum(inputs[0], self._negative(inputs[0]), is_largest=True)
        if name == "clamp":
            least, value, most = inputs
            return self._extremum(self._extremum(value, least, is_largest=True), most, is_largest=False)
        if name == "reduce_window_max":
            index = _window_index(self.nodes[inputs[0].node].shape, params)
            windows = self.add_linear(inputs[0], lambda x: x.reshape(len(x), -1)[:, index])
            return self._over_last_axis(windows)
        axes = tuple(params["axes"])
        if name == "reduce_min":
            return self._negative(self._maximum_of("reduce_max", params, [self._negative(inputs[0])]))
        return self._over_last_axis(self.add_linear(inputs[0], functools.partial(_axes_to_last, axes=axes)))

    def _extremum(self, first: Any, second: Any, *, is_largest: bool) -> _Reference:
        """max(first, second), or min(x, y) = -max(-x, -y)."""
        if not isinstance(first, _Reference):
            first, second = second, first
        if not is_largest:
            negative = lambda value: self._negative(value) if isinstance(value, _Reference) else -value
            return self._negative(self._extremum(negative(first), negative(second), is_largest=True))
        shape = self.nodes[first.node].shape
        if isinstance(second, _Reference):
            return self._add(Maximum(shape, first.node, second.node, None))
        return self._add(Maximum(shape, first.node, None, jnp.broadcast_to(second, shape)))

    def _over_last_axis(self, operand: _Reference) -> _Reference:
        """The largest along the last axis: of halves, again and again."""
        while (size := self.nodes[operand.node].shape[-1]) > 1:
            half = size // 2
            first = self.add_linear(operand, lambda x, half=half: x[..., :half])  # type: ignore[misc]
            second = self.add_linear(operand, lambda x, half=half: x[..., half : 2 * half])  # type: ignore[misc]
            larger = self._extremum(first, second, is_largest=True)
            operand = larger if size == 2 * half else self._with_last(larger, operand)
        return self.add_linear(operand, lambda x: x[..., 0])

    def _with_last(self, first: _Reference, other: _Reference) -> _Reference:
        """`first`, and behind it the last entry of `other`."""
        join = lambda x, y: jnp.concatenate([x, y[..., -1:]], -1)
        shape = jax.eval_shape(join, self._like(first), self._like(other)).shape
        return self._add_affine(shape, [first.node, other.node], join, join)

    def _selected(self, comparison: _Comparison, otherwise: Any, chosen: Any) -> _Reference:
        """`jnp.where(x > y, x, y)` and its like."""
        larger, smaller = comparison
        for one, other, is_largest in ((larger, smaller, True), (smaller, larger, False)):
            if _same(chosen, one) and _same(otherwise, other):
                return self._extremum(larger, smaller, is_largest=is_largest)
        raise _refused("select_n")


def _bind(eqn: Any, inputs: Sequence[Any]) -> Sequence[Any]:
    with eqn.ctx.manager:  # the settings of JAX under which it was traced
        found = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return found if eqn.primitive.multiple_results else [found]


def _with_operands(eqn: Any, inputs: Sequence[Any], places: Sequence[int]) -> Callable[..., Sequence[jax.Array]]:
    """The equation as a function of the inputs at `places`."""

    def apply(*operands: jax.Array) -> Sequence[jax.Array]:
        completed = list(inputs)
        for place, operand in zip(places, operands, strict=True):
            completed[place] = operand
        return _bind(eqn, completed)

    return apply


def _of_radius(value: Any, is_product: bool) -> Any:
    """The constant in the place of `value` where an equation is applied to half-widths."""
    if isinstance(value, _Reference) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return value
    return jnp.abs(value) if is_product else jnp.zeros_like(value)


def _compared(name: str, first: Any, second: Any) -> _Comparison | _IsNan:
    """A comparison; x != x asks for NaN, which no value is here."""
    if name == "ne" and _same(first, second):
        return _IsNan()
    if name == "or":
        for one, other in ((first, second), (second, first)):
            if isinstance(one, _Comparison) and isinstance(other, _IsNan):
                return one
    if name not in _IS_GREATER:
        raise _refused(name)
    return _Comparison(first, second) if _IS_GREATER[name] else _Comparison(second, first)


def _same(first: Any, second: Any) -> bool:
    """Whether two values are one: the same node, or equal constants."""
    if isinstance(first, _Reference) or isinstance(second, _Reference):
        return bool(first == second) if type(first) is type(second) else False
    if _is_test(first) or _is_test(second) or _is_traced(first) or _is_traced(second):
        return False
    return bool(np.all(np.asarray(first) == np.asarray(second)))


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _is_test(value: Any) -> bool:
    return isinstance(value, _Comparison | _IsNan)


def _gives_floats(eqn: Any) -> bool:
    return all(jnp.issubdtype(outvar.aval.dtype, jnp.floating) for outvar in eqn.outvars)


def _axes_to_last(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The axes as one, the last."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    moved = x.transpose(*kept, *axes)
    return moved.reshape(*moved.shape[: len(kept)], -1)


def _window_index(shape: tuple[int, ...], params: Mapping[str, Any]) -> np.ndarray:
    """Where the entries of each window are among those of one example: int [*outputs, entries of a window].

    A place in the padding is one of the others in its window instead, which does not change the maximum.
    """
    window, strides, padding = (tuple(params[name])[1:] for name in ("window_dimensions", "window_strides", "padding"))
    dilated = any(size != 1 for name in ("base_dilation", "window_dilation") for size in params[name])
    along_batch = params["window_dimensions"][0] != 1 or params["window_strides"][0] != 1
    if dilated or along_batch:
        raise ValueError(
            f"The function has a maximum over windows {params['window_dimensions']} with dilation or along the batch; "
            f"expected windows of neighbours in one image."
        )
    places = np.pad(np.arange(math.prod(shape[1:])).reshape(shape[1:]), padding, constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(places, window)
    windows = windows[tuple(slice(None, None, stride) for stride in strides)]
    flat = windows.reshape(*windows.shape[: len(window)], -1)
    return np.where(flat < 0, flat.max(-1, keepdims=True), flat)


def _refused(name: str) -> ValueError:
    return ValueError(
        f"The function has a {name} of what depends on the images, which has no bounds here; expected a network of "
        f"convolutions, products with weights, sums, maxima (ReLU, max pooling) and means, up to its logits."
    )
