"""Any JAX network with its convolutions and pooling in the forms that a CPU computes fast, whoever wrote it.

    faster = fast_on_cpu(logits_fn)         # images [N, ...] -> logits [N, K]; equal values and gradients
    pgd(faster, images, labels, threat_model=threat_model, ...)

They are found in the jaxpr of the function, so it does not matter whether Flax, Equinox, Haiku or `jax.lax` made them.
Each is computed anew (`benchmarks/user_networks.py` measures the gain):

  kernels from 2x2   `cpu_conv` of `rap_jax.models.layers.convolution`, on images as NHWC. It has a quick gradient with
                     respect to the images, which inside a loop is slow on XLA:CPU: 2 to 40 times in an attack.
  kernels of 1x1     a matrix product over the channels, up to 3 times as fast as either form of a convolution; and of
                     patches for other kernels of few entries: 3x3 of 1 channel to 32 features 7.2 -> 1.8 ms a step.
  with max pooling   of 2x2, few channels and "same" padding: `conv_pool` of `rap_jax.models.layers.pool`, one matrix
                     product, also if there are a bias, BatchNorm in evaluation mode or ReLU in between.
  pooling            maxima and sums of strided slices, one axis after the other; with `reduce_window` a gradient takes
                     4 to 60 times as long.

Other operations stay as they are: convolutions with groups, dilation, unequal strides or an oblong kernel, along one or
three axes, or in another dtype than float32; pooling of windows above 4x4; everything inside of a function with a
derivative of its own (`jax.custom_jvp`, `jax.custom_vjp`), whose rule is kept, and inside of a file of `jax.export`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rap_jax._runtime.functions import bind, closed, evaluate, inner_jaxprs, is_relu_of_jax, named_meshes
from rap_jax.models.layers.convolution import cpu_conv
from rap_jax.models.layers.pool import conv_pool, has_conv_pool, pool_windows

# Primitives whose inner jaxprs are rewritten.
_HOLDERS = frozenset("jit pjit closed_call core_call remat2 checkpoint scan while cond".split())
# Each way. The mean over 8x8 pixels, which are the whole image, took 3 times as long by slices.
_LARGEST_WINDOW = 4
# Entries of a kernel for each feature; patches of 25 and 27 took longer than `cpu_conv` for some numbers of features.
_SMALL_PATCH = 16
# Steps that pooling takes in, with numbers that are the same for all pixels.
_BY_ENTRY = frozenset("add sub mul div max min neg tanh logistic".split())
_Form = Callable[..., jax.Array]


def fast_on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose convolutions and pooling take their form for the CPU.

    Args:
      function: arrays -> arrays, trees of them alike; such as images [N, ...] -> logits [N, K].

    Returns:
      The function. Values and gradients equal those of `function` up to rounding. If it has nothing to change, or names
      a mesh of its own, it is called as it is. With `cpu_conv` in it, it has reverse mode only: `jax.jvp`,
      `jax.jacfwd` and `jax.linearize` raise the `TypeError` of JAX for functions with a `custom_vjp`. It is traced at
      every call, so it belongs inside of `jax.jit`, as in an attack.

    Raises:
      ValueError: it cannot be called.
    """
    if not callable(function):
        raise ValueError(f"function is {function!r:.60}; expected a function of arrays, such as images -> logits.")

    def fast(*arguments: Any) -> Any:
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if not _has_form(jaxpr.jaxpr) or any(not mesh.empty for mesh in named_meshes(jaxpr)):
            return function(*arguments)
        outputs = map(_value, evaluate(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(arguments), _compute))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return fast


def _has_form(jaxpr: Any) -> bool:
    """Whether an equation has a form for the CPU, at any depth that is rewritten."""
    return any(_form_of(eqn) is not None or _is_holder(eqn) for eqn in jaxpr.eqns)


def _is_holder(eqn: Any) -> bool:
    """Whether an equation has inner ones with a form for the CPU."""
    return eqn.primitive.name in _HOLDERS and any(map(_has_form, inner_jaxprs(eqn)))


def _compute(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
    """The outputs of an equation; an input or output may be `_Scores`."""
    waiting = [value for value in inputs if isinstance(value, _Scores)]
    if len(waiting) == 1 and (found := _go_on(eqn, inputs, waiting[0])) is not None:
        return [found]
    inputs = [_value(value) for value in inputs]
    form = _form_of(eqn)
    if form is not None:
        return [form(*inputs)]
    if not _is_holder(eqn):
        return bind(eqn, inputs)
    is_jaxpr = lambda value: hasattr(value, "eqns")
    rewritten = lambda value: _rewritten(value) if is_jaxpr(value) else value
    return bind(eqn, inputs, **jax.tree.map(rewritten, eqn.params, is_leaf=is_jaxpr))


def _rewritten(jaxpr: Any) -> Any:
    """The jaxpr, closed or not as it was, with the forms for the CPU."""
    whole = closed(jaxpr)
    like = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in whole.in_avals]
    evaluated = lambda *inputs: [_value(output) for output in evaluate(whole.jaxpr, whole.consts, inputs, _compute)]
    found = jax.make_jaxpr(evaluated)(*like)
    return found if hasattr(jaxpr, "consts") else found.jaxpr


def _form_of(eqn: Any) -> _Form | None:
    """What computes the equation on a CPU; None where XLA's own operation is kept."""
    arrays = [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
    name = eqn.primitive.name
    if name not in _FORMS or not all(array.dtype == jnp.float32 and _is_known(array.shape) for array in arrays):
        return None
    return _FORMS[name](eqn)


def _is_known(shape: tuple[Any, ...]) -> bool:
    """Whether all sizes are numbers above 0; those of an export may be symbols."""
    return all(isinstance(size, int) and size > 0 for size in shape)


def _conv_form(eqn: Any) -> _Form | None:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    strides, size = params["window_strides"], [eqn.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
    steps = (*params["lhs_dilation"], *params["rhs_dilation"])
    groups = (params["feature_group_count"], params["batch_group_count"])
    square = len(size) == 2 and size[0] == size[1] and strides[0] == strides[1]
    if not square or {*steps, *groups} != {1} or params.get("out_sharding") is not None:
        return None
    to_nhwc = lambda spec: (spec[0], spec[2], spec[3], spec[1])
    from_nhwc = np.argsort(to_nhwc(numbers.out_spec))
    to_hwio = (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])

    def form(images: jax.Array, kernel: jax.Array) -> Any:
        images, kernel = lax.transpose(images, to_nhwc(numbers.lhs_spec)), lax.transpose(kernel, to_hwio)
        small = size[0] == 1 or size[0] * size[0] * kernel.shape[2] <= _SMALL_PATCH
        even = 0 if small else max(0, min(itertools.chain(*params["padding"])))
        outer = [(before - even, after - even, 0) for before, after in params["padding"]]
        padded = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *outer, (0, 0, 0)))
        conv = _by_patches if small else cpu_conv
        compute = lambda: lax.transpose(conv(padded, kernel, strides[0], even), from_nhwc)
        same = size[0] > 1 and strides[0] == 1 and {*itertools.chain(*params["padding"])} == {size[0] // 2}
        channels_last = numbers.out_spec == (0, 3, 1, 2)
        may_wait = same and channels_last and has_conv_pool(images, kernel)
        return _Scores(images, kernel, (), compute) if may_wait else compute()

    return form


@dataclasses.dataclass(frozen=True, eq=False)
class _Scores:
    """The outputs of a convolution and steps that change each by itself, not computed yet: pooling may take them in."""

    images: jax.Array  # [N, H, W, C]
    kernel: jax.Array  # [k, k, C, F]
    steps: tuple[Callable[[jax.Array], jax.Array], ...]  # [N, h, w, F] -> [N, h, w, F], for any h and w
    compute: Callable[[], jax.Array]  # [N, H, W, F], after the steps

    @functools.cached_property
    def value(self) -> jax.Array:
        """They, by themselves."""
        return self.compute()

    def pooled(self) -> jax.Array:
        """Their maxima over 2x2."""

        def between(outputs: jax.Array) -> jax.Array:
            rows = outputs.reshape(*outputs.shape[:2], -1, outputs.shape[-1])
            return functools.reduce(lambda found, step: step(found), self.steps, rows).reshape(outputs.shape)

        return conv_pool(self.images, self.kernel, between)


def _value(value: Any) -> Any:
    return value.value if isinstance(value, _Scores) else value


def _go_on(eqn: Any, inputs: Sequence[Any], scores: _Scores) -> Any:
    """One more step of the scores, or their maxima; None if the equation is neither."""
    name, square = eqn.primitive.name, (1, 2, 2, 1)
    if name == "reduce_window_max" and eqn.params["window_dimensions"] == eqn.params["window_strides"] == square:
        padding = {*itertools.chain(*eqn.params["padding"])}
        return scores.pooled() if padding == {0} and _form_of(eqn) else None
    per_feature = lambda value: isinstance(value, _Scores) or np.ndim(value) == 0 or np.shape(value)[:-1] == (1, 1, 1)
    step: Callable[[jax.Array], jax.Array]
    if is_relu_of_jax(eqn):
        step = jax.nn.relu
    elif name in _BY_ENTRY and all(map(per_feature, inputs)):
        step = lambda outputs: bind(eqn, [outputs if value is scores else value for value in inputs])[0]
    else:
        return None
    return _Scores(scores.images, scores.kernel, (*scores.steps, step), lambda: step(scores.value))


def _by_patches(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """[N, H, W, C] and [k, k, C, F] -> [N, H', W', F], for a padding of 0, as one product."""
    size = len(kernel)
    ends = [(images.shape[axis] - size) // stride * stride + 1 for axis in (1, 2)]
    shifted = [
        lax.slice(
            images, (0, i, j, 0), (len(images), i + ends[0], j + ends[1], images.shape[3]), (1, stride, stride, 1)
        )
        for i in range(size)
        for j in range(size)
    ]
    patches = lax.concatenate(shifted, 3)
    return lax.dot_general(patches, kernel.reshape(-1, kernel.shape[3]), (((3,), (0,)), ((), ())))


def _pool_form(eqn: Any) -> _Form | None:
    params = eqn.params
    window, steps = params["window_dimensions"], (*params["base_dilation"], *params["window_dilation"])
    if max(window) > _LARGEST_WINDOW or set(steps) != {1}:
        return None
    kind: Literal["max", "sum"] = "max" if eqn.primitive.name == "reduce_window_max" else "sum"
    return lambda images: pool_windows(images, window, params["window_strides"], params["padding"], kind)


_FORMS: dict[str, Callable[[Any], _Form | None]] = {
    "conv_general_dilated": _conv_form,
    "reduce_window_max": _pool_form,
    "reduce_window_sum": _pool_form,
}
