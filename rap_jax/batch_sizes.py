"""Networks that take batches of one size only, as functions of any number of images.

Such are functions that `jax.export` wrote for one size, that reshape to a constant, or that split the batch over
devices.
"""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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
    raise _refused(first, (sizes[0], *image_shape))


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
    refused = ValueError(
        f"logits_fn cannot be called with float32{list(shape)} ({text[:300]}); expected a JAX function of images "
        f"[N, H, W, C] that returns logits [N, K]. {hint}"
    )
    refused.__cause__ = error
    return refused
