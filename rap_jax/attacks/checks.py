"""What a caller of an attack may get wrong: refused when it is called or traced, by what it is and what was expected.

Values are looked at where they are known then. Under `jax.jit` those of its arguments are not, and shapes and dtypes
are all that is looked at; nothing here is computed by a compiled program."""

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax._runtime.arrays import in_words, is_array, is_number, known_values
from rap_jax._runtime.functions import without_jit
from rap_jax.attacks.losses import check_labels

LossFn = Callable[[jax.Array], jax.Array]
# images [N, ...] in [0, 1] -> logits [N, K]. A randomised network takes (images, key).
LogitsFn = Callable[..., jax.Array]


def check_images(images: jax.Array) -> jax.Array:
    """The images as an array of JAX; a `ValueError` if they are not float [N, ...] in [0, 1]."""
    floating = is_array(images) and jnp.issubdtype(images.dtype, jnp.floating)
    if not floating or images.ndim < 2 or math.prod(images.shape[1:]) == 0:
        raise ValueError(
            f"images are {in_words(images)}; expected floating point [N, ...] with pixels in [0, 1]: divide bytes by "
            f"255, and give a single image as image[None]."
        )
    values = known_values(images)
    if values is not None and values.size and not (values.min() >= 0 and values.max() <= 1):
        found = f"from {float(values.min()):.4g} to {float(values.max()):.4g}"
        raise ValueError(f"images have pixels {found}; expected [0, 1]. Put any normalisation into the network.")
    return jnp.asarray(images)


def check_batch(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images and labels [N] as arrays of JAX, for an attack that moves pixels by less than 16 bits can hold.

    Raises:
      ValueError: images that are not float32 or float64 [N, ...] in [0, 1], or labels that are not whole numbers [N].
    """
    images = check_images(images)
    if jnp.finfo(images.dtype).bits < 32:
        raise ValueError(
            f"images are {in_words(images)}, too coarse for the steps of this attack; expected float32 or float64. Use "
            f"images.astype(jnp.float32), and let logits_fn round them: logits_fn(x.astype(jnp.{images.dtype}))."
        )
    return images, check_labels(labels, len(images))


def check_function(name: str, value: Any, expected: str) -> None:
    """Refuses what cannot be called."""
    if not callable(value):
        raise ValueError(f"{name} is {value!r}; expected a function of {expected}.")


def check_size(name: str, value: Any, dtype: Any = None) -> Any:
    """A radius or another size, 0 or more: a Python number, or a traced scalar as it is or in `dtype`.

    Raises:
      ValueError: anything else, or a known value that is negative, infinite or NaN.
    """
    if not is_number(value):
        found = in_words(value) if is_array(value) else repr(value)
        raise ValueError(f"{name} is {found}; expected one finite number of 0 or more.")
    if is_array(value) and known_values(value) is None:
        return value if dtype is None else value.astype(dtype)
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} is {value}; expected one finite number of 0 or more.")
    return float(value)


def check_step_size(step_size: Any, num_steps: int, dtype: Any) -> Any:
    """`check_size` of one step size for all steps, or of one for each, which becomes an array [num_steps].

    Raises:
      ValueError: as `check_size`, or another number of them.
    """
    if isinstance(step_size, Sequence) and not isinstance(step_size, str):
        step_size = jnp.asarray([check_size("step_size", size) for size in step_size], dtype)
    if not is_array(step_size) or step_size.ndim == 0:
        return check_size("step_size", step_size, dtype)
    known = known_values(step_size)
    fits = step_size.shape == (num_steps,) and jnp.issubdtype(step_size.dtype, jnp.number)
    if not fits or (known is not None and not (np.isfinite(known) & (known >= 0)).all()):
        found = in_words(step_size) if known is None else np.asarray(known).tolist()
        raise ValueError(f"step_size is {found}; expected one finite number of 0 or more, or {num_steps}, one a step.")
    return jnp.asarray(step_size, dtype)


def check_radius(epsilon: Any, norm: str) -> Any:
    """`check_size` of a radius, for images in [0, 1]; a `ValueError` too for a known one above 1 under `linf`."""
    radius = check_size("epsilon", epsilon)
    if norm == "linf" and isinstance(radius, float) and radius > 1:
        raise ValueError(
            f"epsilon is {radius:g}; expected at most 1 under linf: pixels are in [0, 1], so {radius:g}/255 is meant?"
        )
    return radius


def check_count(name: str, value: Any, least: int, what: str) -> int:
    """A number of steps or restarts as an int of Python; a `ValueError` for what is none, or below `least`."""
    if isinstance(value, jax.core.Tracer):
        raise ValueError(
            f"{name} is traced, {in_words(value)}; expected a number that is known when the attack is compiled: name "
            f"it in static_argnames of jax.jit, or close over it."
        )
    whole = not isinstance(value, bool) and hasattr(value, "__index__")
    if is_array(value):
        whole = value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer)
    if not whole or operator.index(value) < least:
        raise ValueError(f"{name} is {value!r}; expected at least {what}, as a whole number.")
    return operator.index(value)


def checked_loss(loss_fn: LossFn) -> LossFn:
    """The same function; it refuses, when it is traced, what is not one loss for each image."""

    def checked(images: jax.Array) -> jax.Array:
        losses = loss_fn(images)
        floating = is_array(losses) and jnp.issubdtype(losses.dtype, jnp.floating)
        if not floating or losses.shape != images.shape[:1]:
            hint = " Leave out the mean or sum over the images." if is_array(losses) and losses.ndim == 0 else ""
            raise ValueError(
                f"loss_fn returns {in_words(losses)}; expected one loss for each image, float [{len(images)}].{hint}"
            )
        return losses

    return checked


def warn_of_nan(valid: jax.Array, function: str) -> None:
    """Warns of the images [N] that are not valid: `function` or its gradient was NaN there. Silent while traced."""
    known = known_values(valid)
    if known is None or known.all():
        return
    warnings.warn(
        f"{function} or its gradient is NaN at {(~known).sum()} of {len(known)} images. There the gradient counted as "
        f"0, and the attack is weaker than it should be: such an image is not known to be robust. Usual causes are "
        f"sqrt, log, a norm or a division at 0; expected finite logits and gradients everywhere. The attack `square` "
        f"takes no gradient.",
        RuntimeWarning,
        stacklevel=4,
    )


def in_dtype(logits_fn: LogitsFn, dtype: Any) -> LogitsFn:
    """The same function with logits in `dtype`; it refuses, when it is traced, what is not float [N, K]."""
    check_function("logits_fn", logits_fn, "images that returns logits")

    def in_dtype(images: jax.Array, *key: jax.Array) -> jax.Array:
        logits = logits_fn(images, *key)
        if not is_array(logits):
            raise ValueError(f"logits_fn returns {in_words(logits)}; expected an array of logits [N, K] alone.")
        floating = jnp.issubdtype(logits.dtype, jnp.floating)
        if not floating or logits.ndim != 2 or logits.shape[0] != images.shape[0]:
            expected = f"logits float [{images.shape[0]}, K], a row for each image"
            raise ValueError(f"logits_fn returns {in_words(logits)}; expected {expected}.")
        return jnp.asarray(logits, dtype)

    return in_dtype


def in_float32(logits_fn: LogitsFn) -> LogitsFn:
    """The same function with logits in float32, in which attacks compare them, whatever the network computes in."""
    # Under `jax.jit` its arrays could not be found (`_runtime.functions`); whoever calls this compiles it anyway.
    return in_dtype(without_jit(logits_fn), jnp.float32)
