"""Functions with the same values and another backward pass, for attacks on networks whose gradient vanishes.

    softer = leaky_backward(logits_fn, slope=0.01)
    pgd(softer, images, labels, threat_model=threat_model, ...)

Where a ReLU is off its gradient is zero, and an attack does not learn what would switch it on. In a small network whose
first layer is thresholds that holds for most pixels. A step follows the direction of a gradient alone, so a small one
from behind the ReLUs decides where there is no other, and hardly moves the rest.

Backward passes that differ from the function: Athalye et al., "Obfuscated Gradients Give a False Sense of Security",
2018, https://arxiv.org/abs/1802.00420, section 4.1.1 (BPDA).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from rap_jax._runtime.arrays import is_number
from rap_jax._runtime.functions import CALLS, bind, closed, evaluate, inner_jaxprs, is_relu_of_jax, relu_operand


def leaky_backward(function: Callable[..., Any], slope: float) -> Callable[..., Any]:
    """The same function, whose gradient passes a ReLU that is off, times `slope`.

    A ReLU is any maximum with the number 0 in the function's jaxpr, whichever library wrote it: `jax.nn.relu`,
    `flax.nnx.relu`, `jnp.maximum(x, 0)`. One inside of a loop, of a branch, or of a function with a derivative of its
    own (other than `jax.nn.relu`) cannot be changed. A maximum with an array of zeros, `jnp.clip(x, 0)` and
    `jnp.where(x > 0, x, 0)` are not seen and stay as they are.

    Args:
      function: arrays -> arrays, trees of them alike; such as images [N, ...] -> logits [N, K].
      slope: of the gradient where the ReLU is off, in [0, 1]. 0 returns the function as it is.

    Returns:
      The function: its values are those of `function`, bit for bit. It raises a `ValueError` when it is traced if there
      is a ReLU that cannot be changed, or none.

    Raises:
      ValueError: another slope.
    """
    if not callable(function):
        raise ValueError(f"function is {function!r:.60}; expected a function of arrays, such as images -> logits.")
    if not is_number(slope) or not 0 <= float(slope) <= 1:
        raise ValueError(f"slope is {slope!r}; expected a number in [0, 1], such as 0.01.")
    if float(slope) == 0:
        return function
    relu = lambda x: _leaky_relu(x, float(slope))

    def changed(*arguments: Any) -> Any:
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if not _has_relu(jaxpr.jaxpr):
            raise ValueError("The function has no ReLU, a maximum with 0; expected one, or slope=0.")
        rule = functools.partial(_evaluate_one, relu=relu)
        outputs = evaluate(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(arguments), rule)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return changed


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _leaky_relu(x: jax.Array, slope: float) -> jax.Array:
    return jnp.maximum(x, 0)


@_leaky_relu.defjvp
def _leaky_relu_jvp(slope: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    return jnp.maximum(x, 0), jnp.where(x > 0, tangent, slope * tangent)


def _evaluate_one(eqn: Any, inputs: list[Any], relu: Callable[[jax.Array], jax.Array]) -> Sequence[Any]:
    name, inner = eqn.primitive.name, inner_jaxprs(eqn)
    if (place := relu_operand(eqn)) is not None:
        return [relu(inputs[place])]
    if any(_has_relu(jaxpr) for jaxpr in inner):
        own_derivative = name in ("custom_jvp_call", "custom_vjp_call") and not is_relu_of_jax(eqn)
        if name not in CALLS or own_derivative:
            raise ValueError(
                f"The function has a ReLU inside of a {name}, whose backward pass cannot be changed; expected ReLUs "
                f"outside of loops, branches and functions with a derivative of their own, or slope=0."
            )
        called = closed(eqn.params[CALLS[name]])
        return evaluate(called.jaxpr, called.consts, inputs, functools.partial(_evaluate_one, relu=relu))
    return bind(eqn, inputs)


def _has_relu(jaxpr: core.Jaxpr) -> bool:
    return any(relu_operand(eqn) is not None or any(map(_has_relu, inner_jaxprs(eqn))) for eqn in jaxpr.eqns)
