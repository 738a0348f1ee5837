"""A network as affine functions and maxima: what bounds are computed of, read from the jaxpr of any JAX function.

Everything that a ReLU network computes of its images is affine (convolutions, products with weights, sums, means,
BatchNorm in evaluation mode, reshaping) or a maximum of two arrays: relu(x) = max(x, 0), min(x, y) = -max(-x, -y),
|x| = max(x, -x), and a maximum over a window is a tree of them. What depends on no image is a constant.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from rap_jax._runtime.functions import CALLS, bind, closed, evaluate
from rap_jax.evaluation.certificates.equations import (
    axes_to_last,
    check_floats,
    is_floating,
    radius_of,
    window_index,
    with_operands,
)


class Images(NamedTuple):
    """The one image with which a graph begins, [1, ...]."""

    shape: tuple[int, ...]


class Affine(NamedTuple):
    """An affine function of the nodes `operands`."""

    shape: tuple[int, ...]
    operands: tuple[int, ...]
    operand_shapes: tuple[tuple[int, ...], ...]
    apply: Callable[..., jax.Array]  # of arrays of the operands' shapes
    radius: Callable[..., jax.Array]  # of half-widths of the operands: that of the result
    has_offset: bool  # whether it may be something else than 0 at 0
    factor: Any = None  # of its one operand, where it is a product entry by entry


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


# Primitives that copy, move or sum entries, or put constants between them: their coefficients are 0 and 1.
_MOVES = frozenset(
    "reshape transpose broadcast_in_dim squeeze expand_dims slice pad concatenate stack tile reduce_sum "
    "reduce_window_sum rev gather dynamic_slice dynamic_update_slice scatter scatter-add convert_element_type select_n "
    "cumsum split unstack".split()
)
# These return what they are given. They are passed over: the derivative of some is another one.
_IDENTITIES = frozenset("copy copy_p optimization_barrier sharding_constraint stop_gradient device_put".split())
_SUMS = frozenset(("add", "sub", "add_any", "neg"))
# Linear in one operand where the others are constants.
_PRODUCTS = frozenset(("mul", "div", "dot_general", "conv_general_dilated"))
_MAXIMA = frozenset(("max", "min", "abs", "clamp", "reduce_max", "reduce_min", "reduce_window_max"))
_IS_GREATER = {"gt": True, "ge": True, "lt": False, "le": False}


def graph_of(function: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> Graph:
    """The graph of a function images [N, ...] -> logits [N, K] for one image, N = 1.

    Args:
      function: of float32 arrays.
      shape: of one image.

    Raises:
      ValueError: it does something with the image that is neither affine nor a maximum; names the primitive. Or what it
        returns is not [1, K].
    """
    jaxpr = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    shapes = [outvar.aval.shape for outvar in jaxpr.jaxpr.outvars]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != 1:
        raise ValueError(f"The function returns {shapes} for one image; expected logits [1, K].")
    reader = _Reader((1, *shape))
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
        return evaluate(jaxpr, consts, arguments, self._read_one, _needed(jaxpr))

    def _read_one(self, eqn: Any, inputs: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        if not any(isinstance(value, _Reference | _Comparison | _IsNan) for value in inputs):
            if any(isinstance(value, jax.core.Tracer) for value in inputs):
                return bind(eqn, inputs)
            with jax.ensure_compile_time_eval():  # so that constants can be compared
                return bind(eqn, inputs)
        if name in CALLS:
            called = closed(eqn.params[CALLS[name]])
            return self.read(called.jaxpr, called.consts, inputs)
        if name in _IDENTITIES:
            return inputs
        if name in ("ne", "or", *_IS_GREATER):
            return [_compared(name, *inputs)]
        if name == "select_n" and isinstance(inputs[0], _Comparison):
            return [self._selected(*inputs)]
        if name in _MAXIMA:
            return [self._maximum_of(name, eqn.params, inputs)]
        return self._affine(eqn, inputs)

    def add_linear(self, operand: _Reference, function: Callable[[jax.Array], jax.Array]) -> _Reference:
        """The node of a function that moves or copies entries."""
        shape = self._shape(function, operand)
        return self._add_affine(shape, [operand.node], function, function)

    def _shape(self, function: Callable[..., jax.Array], *operands: _Reference) -> tuple[int, ...]:
        like = (jax.ShapeDtypeStruct(self.nodes[operand.node].shape, jnp.float32) for operand in operands)
        return jax.eval_shape(function, *like).shape

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
        factor: Any = None,
    ) -> _Reference:
        shapes = tuple(self.nodes[number].shape for number in operands)
        return self._add(Affine(shape, tuple(operands), shapes, apply, radius, has_offset, factor))

    def _add(self, node: Node) -> _Reference:
        self.nodes.append(node)
        return _Reference(len(self.nodes) - 1)

    def _affine(self, eqn: Any, inputs: list[Any]) -> list[_Reference]:
        """The outputs of an equation that is affine in its references."""
        name = eqn.primitive.name
        places = [place for place, value in enumerate(inputs) if isinstance(value, _Reference)]
        constants = [value for place, value in enumerate(inputs) if place not in places]
        is_product = name in _PRODUCTS and len(places) == 1 and (name != "div" or places == [0])
        if not (is_product or name in _MOVES | _SUMS) or any(map(_is_test, inputs)):
            raise _refused(name)
        check_floats(eqn)
        apply = with_operands(eqn, inputs, places)
        radius = radius_of(eqn, inputs, places, is_product)
        if name in _SUMS:
            radius = lambda *sizes: [functools.reduce(jnp.add, sizes)]
        # A gather may fill in numbers of its own.
        has_offset = not is_product and (name == "gather" or any(map(is_floating, constants)))
        numbers = [inputs[place].node for place in places]
        one = lambda function, output: lambda *arrays: function(*arrays)[output]
        factor = constants[0] if name == "mul" else None
        return [
            self._add_affine(
                outvar.aval.shape,
                numbers,
                one(apply, output),
                one(radius, output),
                has_offset=has_offset,
                factor=factor,
            )
            for output, outvar in enumerate(eqn.outvars)
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
            index = window_index(self.nodes[inputs[0].node].shape, params)
            windows = self.add_linear(inputs[0], lambda x: x.reshape(len(x), -1)[:, index])
            return self._over_last_axis(windows)
        axes = tuple(params["axes"])
        if name == "reduce_min":
            return self._negative(self._maximum_of("reduce_max", params, [self._negative(inputs[0])]))
        return self._over_last_axis(self.add_linear(inputs[0], functools.partial(axes_to_last, axes=axes)))

    def _extremum(self, first: Any, second: Any, *, is_largest: bool) -> Any:
        """max(first, second), or min(x, y) = -max(-x, -y)."""
        if not isinstance(first, _Reference):
            first, second = second, first
        if not isinstance(first, _Reference):
            return jnp.maximum(first, second) if is_largest else jnp.minimum(first, second)
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
        shape = self._shape(join, first, other)
        return self._add_affine(shape, [first.node, other.node], join, join)

    def _selected(self, comparison: _Comparison, otherwise: Any, chosen: Any) -> _Reference:
        """`jnp.where(x > y, x, y)` and its like, and a leaky ReLU, `jnp.where(x > 0, x, a * x)`."""
        larger, smaller = comparison
        for one, other, is_largest in ((larger, smaller, True), (smaller, larger, False)):
            if _same(chosen, one) and _same(otherwise, other):
                return self._extremum(larger, smaller, is_largest=is_largest)
        above, below = (chosen, otherwise) if isinstance(larger, _Reference) else (otherwise, chosen)
        bent, threshold = (larger, smaller) if isinstance(larger, _Reference) else (smaller, larger)
        if _same(threshold, 0) and _same(above, bent) and (factor := self._factor(below, bent)) is not None:
            return self._leaky(bent, factor)
        raise _refused("select_n")

    def _factor(self, value: Any, operand: _Reference) -> Any:
        """What the operand is multiplied by, entry by entry, to make the value; None if it is not made so."""
        node = self.nodes[value.node] if isinstance(value, _Reference) else None
        return node.factor if isinstance(node, Affine) and node.operands == (operand.node,) else None

    def _leaky(self, operand: _Reference, factor: Any) -> _Reference:
        """max(x, 0) + a min(x, 0)."""
        shape = self.nodes[operand.node].shape
        on, off = (self._extremum(operand, 0.0, is_largest=is_largest) for is_largest in (True, False))
        apply, radius = (lambda x, y: x + factor * y), (lambda x, y: x + jnp.abs(factor) * y)
        return self._add_affine(shape, [on.node, off.node], apply, radius)


def _needed(jaxpr: core.Jaxpr) -> list[Any]:
    """The equations on which the outputs depend, in their order."""
    wanted, found = {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}, list[Any]()
    for eqn in reversed(jaxpr.eqns):
        if wanted & set(eqn.outvars):
            found.append(eqn)
            wanted |= {atom for atom in eqn.invars if not isinstance(atom, core.Literal)}
    return found[::-1]


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
    if first is second:
        return True
    if _is_test(first) or _is_test(second) or isinstance(first, jax.core.Tracer) or isinstance(second, jax.core.Tracer):
        return False
    return bool(np.all(np.asarray(first) == np.asarray(second)))


def _is_test(value: Any) -> bool:
    return isinstance(value, _Comparison | _IsNan)


def _refused(name: str) -> ValueError:
    return ValueError(
        f"The function has a {name} of what depends on the images, which has no bounds here; expected a network of "
        f"convolutions, products with weights, sums, maxima (ReLU, max pooling) and means, up to its logits."
    )
