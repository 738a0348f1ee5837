"""Multiply-adds of a network, counted from the jaxpr of its function: what it asks for, whatever computes it.

    found = count_multiply_adds(logits, weights, (1, 28, 28, 1))
    found.all         of all convolutions and matrix products
    found.effective   of those, the ones with a weight that is not zero
    multiply_adds_per_weight(logits, params, (1, 28, 28, 1))     {"conv1/kernel": 784, ...}

Each weight of a convolution is used once for every place of the output, those where it meets the padding too; bias,
BatchNorm, ReLU and pooling are left out. A model made with implementation="xla" is counted as it is written; a form for
the CPU has products of its own, with zeros in them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from rap_jax._runtime.functions import closed, inner_jaxprs
from rap_jax.pruning.layers import is_kernel, leaves_by_name, tree_by_name

_PRODUCTS = ("conv_general_dilated", "dot_general")
# Equations that are computed once, by the jaxpr in them.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")

# A value that is known without the images, or None for one that depends on them.
_Value = Any


class MultiplyAdds(NamedTuple):
    """Numbers of multiply-adds."""

    all: int
    effective: int  # those with a weight other than zero

    def __add__(self, other: Any) -> "MultiplyAdds":
        return MultiplyAdds(self.all + other.all, self.effective + other.effective)


def count_multiply_adds(
    function: Callable[[Any, jax.Array], Any], weights: Any, images_shape: Sequence[int]
) -> MultiplyAdds:
    """Counts what `function(weights, images)` multiplies.

    What depends on the weights alone (a BatchNorm inside a kernel) is computed, to see its zeros; nothing that depends
    on the images is.

    Args:
      function: pure; convolutions of any stride, dilation of the kernel and groups, and matrix products.
      weights: a tree of arrays.
      images_shape: [N, H, W, C]; N = 1 counts for one image.

    Raises:
      ValueError: products inside a loop or a branch, which may run any number of times.
    """
    return _counter(function, weights, images_shape)(weights)


def multiply_adds_per_weight(
    function: Callable[[Any, jax.Array], Any], params: Any, images_shape: Sequence[int]
) -> dict[str, int]:
    """Name of a kernel -> multiply-adds that each of its weights takes part in; arguments as `count_multiply_adds`."""
    count, ones = _counter(function, params, images_shape), leaves_by_name(jax.tree.map(np.ones_like, params))
    zeros = {name: np.zeros_like(leaf) for name, leaf in ones.items() if is_kernel(name)}
    alone = lambda name: tree_by_name(params, {**ones, **zeros, name: ones[name]})
    return {name: count(alone(name)).effective // zeros[name].size for name in zeros}


def _counter(
    function: Callable[[Any, jax.Array], Any], weights: Any, images_shape: Sequence[int]
) -> Callable[[Any], MultiplyAdds]:
    """Counts for weights of these shapes; the function is traced once."""
    leaves, tree = jax.tree.flatten(weights)
    images = jax.ShapeDtypeStruct(tuple(images_shape), np.float32)
    closed = jax.make_jaxpr(lambda leaves, images: function(jax.tree.unflatten(tree, leaves), images))(leaves, images)
    return lambda weights: _count(closed.jaxpr, closed.consts, [*jax.tree.leaves(weights), None])[1]


def _count(jaxpr: core.Jaxpr, consts: Sequence[_Value], inputs: Sequence[_Value]) -> tuple[list[_Value], MultiplyAdds]:
    """The outputs, as far as they are known, and the products on the way to them."""
    values: dict[Any, _Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
    total = MultiplyAdds(0, 0)
    for eqn in jaxpr.eqns:
        outputs, found = _count_one(eqn, [read(atom) for atom in eqn.invars])
        values |= dict(zip(eqn.outvars, outputs, strict=True))
        total += found
    return [read(atom) for atom in jaxpr.outvars], total


def _count_one(eqn: Any, inputs: list[_Value]) -> tuple[Sequence[_Value], MultiplyAdds]:
    name = eqn.primitive.name
    if name in _CALLS:
        inner = closed(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
        return _count(inner.jaxpr, inner.consts, inputs)
    if all(value is not None for value in inputs):
        # A product of weights alone is work too, but the compiler or an export does it once for all images.
        found = eqn.primitive.bind(*inputs, **eqn.params)
        return (found if eqn.primitive.multiple_results else [found]), MultiplyAdds(0, 0)
    unknown: list[_Value] = [None] * len(eqn.outvars)
    if name in _PRODUCTS:
        return unknown, _product(eqn, inputs)
    if any(_has_product(inner) for inner in inner_jaxprs(eqn)):
        raise ValueError(
            f"The network multiplies inside a {name}, which may run any number of times; expected convolutions and "
            f'matrix products alone: create the model with implementation="xla".'
        )
    return unknown, MultiplyAdds(0, 0)


def _product(eqn: Any, inputs: list[_Value]) -> MultiplyAdds:
    """Of one equation; each weight takes part in equally many."""
    output, shapes = eqn.outvars[0].aval.shape, [atom.aval.shape for atom in eqn.invars]
    if eqn.primitive.name == "dot_general":
        ((contracted, _), _) = eqn.params["dimension_numbers"]
        number = math.prod(output) * math.prod(shapes[0][axis] for axis in contracted)
    else:
        # The kernel of a convolution in groups has the inputs of one group, and the outputs of all.
        places = math.prod(output) // output[eqn.params["dimension_numbers"].out_spec[1]]
        number = places * math.prod(shapes[1])
    known = next((np.asarray(value) for value in inputs[:2][::-1] if value is not None), None)
    if known is None:
        return MultiplyAdds(number, number)
    return MultiplyAdds(number, number // known.size * int(np.count_nonzero(known)))


def _has_product(jaxpr: core.Jaxpr) -> bool:
    return any(
        eqn.primitive.name in _PRODUCTS or any(_has_product(inner) for inner in inner_jaxprs(eqn)) for eqn in jaxpr.eqns
    )
