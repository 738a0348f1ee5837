"""Carlini and Wagner (C&W) in L2: the nearest misclassified image, by Adam and a search for the weight of the loss.

Reference: Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017,
https://arxiv.org/abs/1608.04644, section 6.A, with the objective f6 of section 5.A. For each example it minimises

    ||x - image||^2 + c max(confidence - lead(x), 0),    x = (tanh(w) + 1) / 2,

over w, where `lead` is how far the wrong class is above the right one, and looks for the smallest c that still finds a
misclassified x: ten times c after a failure, half way between failure and success after that.

Differs from the authors' code: (1) an image that is misclassified already comes back as it is, at distance 0. (2) An
untargeted attack with a confidence has to lead by it; theirs lowers the logit of the label by it before comparing,
which counts images that are classified right. (3) No early abort: theirs looks at the loss of the whole batch, which
couples its examples. (4) Distances are measured from the image, not from its copy that went through tanh. (5) With 10
search steps or more theirs runs the smallest successful c again; without an early abort that gives the same images.
Like the code and unlike the paper it starts from the image alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rap_jax.attacks.checks import LogitsFn, check_batch, check_count, check_size, in_dtype, warn_of_nan
from rap_jax.attacks.losses import margin
from rap_jax.attacks.norms import ThreatModel, check_threat_model, finite, has_nan
from rap_jax.attacks.stepwise import AttackResult, where

# Pixels of 0 and 1 are drawn in by half of a millionth, where tanh has a gradient still.
_INSIDE = 0.999999


class _Nearest(NamedTuple):
    """The nearest misclassified images so far."""

    adversarial: jax.Array  # the clean image where there is none, [N, ...]
    broken: jax.Array  # whether there is one, bool [N]
    distance: jax.Array  # from the clean image, [N]; infinite where there is none


class _Search(NamedTuple):
    """The search over c, [N]."""

    c: jax.Array
    # The largest c that failed, the smallest that succeeded.
    lower: jax.Array
    upper: jax.Array
    nearest: _Nearest
    valid: jax.Array  # whether no logits and no gradient were NaN, bool [N]


class _Descent(NamedTuple):
    """One minimisation with fixed c."""

    w: jax.Array
    adam_state: optax.OptState
    # Whether any x so far was misclassified, bool [N].
    found: jax.Array
    nearest: _Nearest
    valid: jax.Array


def cw_l2(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat_model: ThreatModel | None = None,
    key: jax.Array | None = None,
    targeted: bool = False,
    confidence: float = 0.0,
    num_steps: int = 1000,
    learning_rate: float = 0.01,
    num_search_steps: int = 9,
    initial_c: float = 1e-3,
) -> AttackResult:
    """Looks for the misclassified image in [0, 1] that is nearest to each image in L2.

    No radius limits the search. A threat model only decides in the end which images are near enough; without one the
    nearest image counts however far it is, and the L2 norm of `adversarial - images` where `broken` says how far.

    Draws nothing, and treats each example by itself as long as `logits_fn` treats it so. Meant to be called under
    `jax.jit`, where everything but the arrays is static. Takes `num_steps * num_search_steps` gradients, whether they
    help or not.

    Args:
      logits_fn: images [N, ...] -> logits [N, K], before any softmax.
      images: clean, float32 or float64 in [0, 1], [N, ...].
      labels: whole numbers [N]; the right classes, or with `targeted` the classes to be reached.
      threat_model: of norm `l2`, or None.
      key: not read; it is there since every other attack takes one.
      targeted: whether an image counts only if it is taken for its label, instead of for anything else.
      confidence: the lead, in logits, that the wrong class has to have; 0 or more.
      num_steps: Adam steps for each c. The authors' code takes 10,000 at most.
      learning_rate: of Adam, in the units of w.
      num_search_steps: values of c that are tried.
      initial_c: the first of them.

    Returns:
      For each example the nearest image of all steps, the clean one where none counts. Its distance is an upper bound
      of the true one.

    Raises:
      ValueError: another norm, images or labels that are no batch, images of fewer than 32 bits, logits that are not
        float [N, K], or an impossible setting.

    Warns:
      RuntimeWarning: logits or a gradient were NaN, where it counted as 0; outside `jax.jit` only, where that is known.
    """
    del key
    if threat_model is not None and check_threat_model(threat_model).norm != "l2":
        raise ValueError(f"norm is {threat_model.norm!r}; expected l2, in which C&W looks for the nearest image.")
    images, labels = check_batch(images, labels)
    confidence = check_size("confidence", confidence, images.dtype)
    num_steps = check_count("num_steps", num_steps, 1, "1 step")
    num_search_steps = check_count("num_search_steps", num_search_steps, 1, "1 step")
    for name, size in {"learning_rate": learning_rate, "initial_c": initial_c}.items():
        if not isinstance(size, jax.core.Tracer) and not check_size(name, size) > 0:
            raise ValueError(f"{name} is {size!r}; expected more than 0, such as the paper's 0.01 and 0.001.")
    logits_fn = in_dtype(logits_fn, images.dtype)
    if not len(images):  # which many a network cannot reshape
        return AttackResult(images, jnp.zeros(0, bool))

    def shortfall_fn(x: jax.Array) -> jax.Array:
        """What is missing of the lead; an image is misclassified where this is negative, not where it is NaN, [N]."""
        lead = margin(logits_fn(x), labels)
        return confidence + lead if targeted else confidence - lead

    def search(_: int, state: _Search) -> _Search:
        end = _descend(shortfall_fn, images, state.c, state.nearest, optax.adam(learning_rate), num_steps)
        lower = jnp.where(end.found, state.lower, state.c)
        upper = jnp.where(end.found, state.c, state.upper)
        c = jnp.where(upper < jnp.inf, (lower + upper) / 2, 10 * state.c)
        return _Search(c, lower, upper, end.nearest, state.valid & end.valid)

    end = lax.fori_loop(0, num_search_steps, search, _first(images, shortfall_fn(images), initial_c))
    warn_of_nan(end.valid, "logits_fn")
    broken = end.nearest.broken
    if threat_model is not None:
        broken &= end.nearest.distance <= threat_model.epsilon
    found = AttackResult(where(broken, end.nearest.adversarial, images), broken)
    return jax.tree.map(lax.stop_gradient, found)


def _first(images: jax.Array, shortfall: jax.Array, initial_c: float) -> _Search:
    zeros, broken = jnp.zeros(len(images), images.dtype), shortfall < 0
    nearest = _Nearest(images, broken, jnp.where(broken, zeros, jnp.inf))
    return _Search(zeros + initial_c, zeros, zeros + jnp.inf, nearest, ~jnp.isnan(shortfall))


def _descend(
    shortfall_fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    c: jax.Array,
    nearest: _Nearest,
    adam: optax.GradientTransformation,
    num_steps: int,
) -> _Descent:
    """Minimises the objective from the images on; its end has the nearest misclassified x up to now."""

    def objective(w: jax.Array) -> tuple[jax.Array, tuple[_Nearest, jax.Array]]:
        x = (jnp.tanh(w) + 1) / 2
        squared = jnp.sum(jnp.square(x - images), range(1, images.ndim))
        shortfall = shortfall_fn(x)
        total = jnp.sum(squared + c * jnp.maximum(shortfall, 0))
        now = _Nearest(x, shortfall < 0, jnp.sqrt(lax.stop_gradient(squared)))
        return total, (now, ~jnp.isnan(shortfall))

    def step(_: int, state: _Descent) -> _Descent:
        gradient, (now, is_number) = jax.grad(objective, has_aux=True)(state.w)
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in whole numbers, as powers of a float
            updates, adam_state = adam.update(finite(gradient), state.adam_state)
        valid = state.valid & is_number & ~has_nan(gradient)
        return _Descent(state.w + updates, adam_state, state.found | now.broken, _nearer(state.nearest, now), valid)

    w = jnp.arctanh((2 * images - 1) * _INSIDE)
    none = jnp.zeros(len(images), bool)
    return lax.fori_loop(0, num_steps, step, _Descent(w, adam.init(w), none, nearest, ~none))


def _nearer(before: _Nearest, now: _Nearest) -> _Nearest:
    """`now` where it is misclassified and nearer than all before."""
    new = now.broken & (now.distance < before.distance)
    return _Nearest(*(where(new, chosen, other) for chosen, other in zip(now, before, strict=True)))
