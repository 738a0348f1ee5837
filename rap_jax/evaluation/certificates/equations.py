"""Equations of a jaxpr as functions: of the operands that depend on the images, and of their half-widths."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax._runtime.functions import bind


def with_operands(eqn: Any, inputs: Sequence[Any], places: Sequence[int]) -> Callable[..., Sequence[jax.Array]]:
    """The equation as a function of the inputs at `places`."""

    def apply(*operands: jax.Array) -> Sequence[jax.Array]:
        completed = list(inputs)
        for place, operand in zip(places, operands, strict=True):
            completed[place] = operand
        return bind(eqn, completed)

    return apply


def radius_of(
    eqn: Any, inputs: Sequence[Any], places: Sequence[int], is_product: bool
) -> Callable[..., Sequence[jax.Array]]:
    """The half-widths of an equation's results, of those of the inputs at `places`.

    The equation is a product of one of them with constants, or else its coefficients are 0 and 1.
    """
    change = jnp.abs if is_product else jnp.zeros_like
    free = lambda place, value: place not in places and is_floating(value)
    changed = [change(value) if free(place, value) else value for place, value in enumerate(inputs)]
    apply = with_operands(eqn, changed, places)
    if is_product:
        return apply
    # Less what an equation has filled in.
    at_zero = lambda sizes: apply(*map(jnp.zeros_like, sizes))
    return lambda *sizes: [size - offset for size, offset in zip(apply(*sizes), at_zero(sizes), strict=True)]


def is_floating(value: Any) -> bool:
    """Whether a value is of floating-point numbers."""
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.floating))


def check_floats(eqn: Any) -> None:
    """Refuses an equation that rounds to half precision, or to whole numbers."""
    for outvar in eqn.outvars:
        if outvar.aval.dtype not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"The function has a {eqn.primitive.name} in {outvar.aval.dtype} of what depends on the images; "
                f"expected float32, since rounding is not bounded here."
            )


def axes_to_last(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The axes as one, the last."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    moved = x.transpose(*kept, *axes)
    return moved.reshape(*moved.shape[: len(kept)], -1)


def window_index(shape: tuple[int, ...], params: Mapping[str, Any]) -> np.ndarray:
    """Where the entries of each window are among those of one example: int [*outputs, entries of a window].

    A place in the padding is one of the others in its window instead, which does not change the maximum.
    """
    window, strides, padding = (tuple(params[name]) for name in ("window_dimensions", "window_strides", "padding"))
    dilated = any(size != 1 for name in ("base_dilation", "window_dilation") for size in params[name])
    along_batch = window[0] != 1 or strides[0] != 1 or tuple(padding[0]) != (0, 0)
    cropped = any(size < 0 for sides in padding for size in sides)
    places = np.arange(math.prod(shape[1:])).reshape(shape[1:])
    flat = np.full((1, 1), -1)
    if not (dilated or along_batch or cropped):
        places = np.pad(places, padding[1:], constant_values=-1)
        windows = np.lib.stride_tricks.sliding_window_view(places, window[1:])
        windows = windows[tuple(slice(None, None, stride) for stride in strides[1:])]
        flat = windows.reshape(*windows.shape[: len(window) - 1], -1)
    if np.any(flat.max(-1) < 0):
        raise ValueError(
            f"The function has a maximum over windows {window} with padding {padding}, dilation, or nothing but "
            f"padding in a window; expected windows of neighbours in one image."
        )
    return np.where(flat < 0, flat.max(-1, keepdims=True), flat)
