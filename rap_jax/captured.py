"""The arrays that a function has captured, as an argument of it.

A compiled program would hold captured weights as constants: compiled in, once for each program, and bound to the
devices on which they happen to lie.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxpr_as_fun

from rap_jax.attacks.checks import without_jit

Captured = list[jax.Array]


def lift_captured(function: Callable[..., jax.Array], *arguments: Any) -> tuple[Callable[..., jax.Array], Captured]:
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
