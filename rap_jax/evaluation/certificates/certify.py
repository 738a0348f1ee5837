"""Which images no perturbation of a threat model can break: proofs, where attacks give examples.

    found = certify(logits_fn, images, labels, threat_model=ThreatModel("linf", 0.1))
    found.certified.mean()      # robust accuracy is this at least
    1 - found.broken.mean()     # and this at most

Between the two lie the images that are open: neither proved nor broken. A network that was trained against PGD alone
has few certified ones at the radius that it was trained for, since its bounds are wide; that says little about its
robustness.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from rap_jax._runtime.functions import exact_products, hoist_closure
from rap_jax.attacks import ThreatModel
from rap_jax.evaluation.certificates.bounds import Method, bound_nodes, lowest, worst_images
from rap_jax.evaluation.certificates.graph import graph_of

LogitsFn = Callable[[jax.Array], jax.Array]
METHODS: tuple[Method, ...] = get_args(Method)
# Share of the largest logit that rounding in float32 may take from a bound.
_ROUNDING = 1e-5


class Certificates(NamedTuple):
    """What is known of each image; what is neither certified nor broken is open."""

    certified: np.ndarray  # bool [N]: no image of the threat model is misclassified
    broken: np.ndarray  # bool [N]: `adversarial` is misclassified
    margin: np.ndarray  # float32 [N]: a lower bound of the label's logit less the largest other one
    adversarial: np.ndarray  # float32 [N, ...]: an image of the threat model, misclassified where `broken`
    tried: np.ndarray  # int8 [N]: how many of `METHODS`, from the first on, have looked at the image


def margin_bounds(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat_model: ThreatModel,
    method: Method = "crown",
) -> jax.Array:
    """Lower bounds of the label's logit less each other one, over the threat model: [N, K], 0 at the label.

    A pure function that can be jitted and differentiated, so it serves in a loss: the cross-entropy of the negative
    bounds is that of logits that are as bad as the bounds allow (Gowal et al., 2018).

    Args:
      logits_fn: images [N, ...] -> logits [N, K], each image by itself, in evaluation mode. See `graph_of`.
      images: clean, in [0, 1], [N, ...].
      labels: whole numbers [N].
      threat_model: norm and radius.
      method: see `rap_jax.evaluation.certificates.bounds`. Its margin or that of intervals, the better one.

    Raises:
      ValueError: an unknown method, or a function that has no bounds here.
    """
    return _margins(logits_fn, images, labels, threat_model, method)[0]


def certify(
    logits_fn: LogitsFn,
    images: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray,
    *,
    threat_model: ThreatModel,
    method: Method = "crown",
    batch_size: int = 16,
    known: Certificates | None = None,
    on_batch: Callable[[Certificates], None] = lambda found: None,
) -> Certificates:
    """Says of each image whether it is certified, broken, or open.

    The methods up to `method` take their turns, the quick ones first, each on what those before it have left open.
    Broken are images that are misclassified as they are, or where the linear bound of their weakest margin is least.

    Args:
      logits_fn: images [N, ...] -> logits [N, K], each image by itself, in evaluation mode. See `graph_of`. It is
        bounded for one image at a time, N = 1.
      images: clean, in [0, 1], [N, ...].
      labels: whole numbers [N].
      threat_model: norm and radius.
      method: the last one of `METHODS` that is tried, see `rap_jax.evaluation.certificates.bounds`.
      batch_size: images at a time.
      known: of an earlier call with the same network, images and threat model, to go on from: one that stopped, or one
        by a quicker method.
      on_batch: called with what is known after each batch, to be copied or read; it may raise to stop.

    Raises:
      ValueError: an unknown method, unequal numbers of images and labels, images outside of [0, 1] or NaN, labels
        outside of [0, K), `known` of other images, a function that mixes the images of a batch, or one that has no
        bounds here.
    """
    images, labels = _checked(images, labels, batch_size)
    methods = METHODS[: METHODS.index(_checked_method(method)) + 1]
    batch_size = min(batch_size, max(1, len(images)))
    like = jax.ShapeDtypeStruct((batch_size, *images.shape[1:]), jnp.float32)
    num_classes = _num_classes(logits_fn, like)
    lifted, captured = hoist_closure(logits_fn, like)
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}; expected 0 to {num_classes - 1}.")
    found = _begin(images, known)
    for number, one in enumerate(methods):
        left = np.flatnonzero(~found.certified & ~found.broken & (found.tried <= number))
        program = jax.jit(functools.partial(_certify_batch, lifted, threat_model, one))
        for first in range(0, len(left), batch_size):
            batch = left[first : first + batch_size]
            filled = np.resize(batch, batch_size)
            _take_in(found, batch, *jax.device_get(program(captured, images[filled], labels[filled])))
            found.tried[batch] = number + 1
            on_batch(found)
    return found


def _begin(images: np.ndarray, known: Certificates | None) -> Certificates:
    """A copy of what is known."""
    count = len(images)
    if known is None:
        none = np.zeros(count, bool)
        return Certificates(none, none.copy(), np.full(count, -np.inf, np.float32), images.copy(), none.astype(np.int8))
    if known.adversarial.shape != images.shape:
        raise ValueError(
            f"known is of images {list(known.adversarial.shape)}, the images are {list(images.shape)}; expected the "
            f"Certificates of the same images."
        )
    return Certificates(*map(np.array, known))


def _take_in(
    found: Certificates,
    batch: np.ndarray,
    certified: np.ndarray,
    broken: np.ndarray,
    margin: np.ndarray,
    adversarial: np.ndarray,
    mixed: np.ndarray,
) -> None:
    """Writes what a program says of the images `batch`, int [n]; the arrays may be longer."""
    if mixed:
        raise ValueError(
            "The logits of an image change with the other images of its batch; expected a network in evaluation "
            "mode, which takes each image by itself."
        )
    count = len(batch)
    proved, refuted = (np.zeros(len(found.broken), bool) for _ in range(2))
    proved[batch], refuted[batch] = certified[:count], broken[:count]
    check_unbroken(proved, refuted, "the images of their own bounds")
    found.certified[batch], found.broken[batch] = certified[:count], broken[:count]
    found.margin[batch] = np.maximum(found.margin[batch], margin[:count])
    found.adversarial[batch] = adversarial[:count]


def check_unbroken(certified: np.ndarray, broken: np.ndarray, attack: str) -> None:
    """Refuses proofs that an attack has refuted.

    Args:
      certified, broken: bool [N].
      attack: its name.

    Raises:
      ValueError: an image is both.
    """
    both = np.flatnonzero(certified & broken)
    if both.size:
        raise ValueError(
            f"{both.size} images are certified, and {attack} broke them (the first is number {both[0]}); expected "
            f"none. A bound is wrong, which is an error of this program: no certificate of it counts. Please report "
            f"it with the network and that image."
        )


def _certify_batch(
    lifted: Callable[..., jax.Array],
    threat_model: ThreatModel,
    method: Method,
    captured: list[jax.Array],
    images: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, ...]:
    """Certified, broken, margin and adversarial, and whether the logits of an image depend on its batch."""
    logits_fn = exact_products(functools.partial(lifted, captured))
    margins, coefficients, scale = _margins(logits_fn, images, labels, threat_model, method)
    is_label = jax.nn.one_hot(labels, margins.shape[-1], dtype=bool)
    others = jnp.where(is_label, jnp.inf, margins)
    weakest, margin = others.argmin(-1), others.min(-1)
    candidate = worst_images(coefficients[jnp.arange(len(images)), weakest], images, threat_model)
    logits, moved_logits = logits_fn(images), logits_fn(candidate)
    misses = lambda logits: ~(jnp.where(is_label, -jnp.inf, logits).max(-1) < _at(logits, labels))
    clean_broken, candidate_broken = misses(logits), misses(moved_logits)
    is_example = (~clean_broken & candidate_broken).reshape(-1, *[1] * (images.ndim - 1))
    alone = jax.vmap(lambda image: logits_fn(image[None])[0])(images)
    mixed = jnp.abs(logits - alone).max() > 1e-3 * (1 + jnp.abs(logits).max())
    adversarial = jnp.where(is_example, candidate, images)
    return margin > _ROUNDING * scale, clean_broken | candidate_broken, margin, adversarial, mixed


def _margins(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, threat_model: ThreatModel, method: Method
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Margins [N, K], the coefficients of the image in each [N, K, ...], and 1 + the size of the largest logit [N]."""
    _checked_method(method)
    graph = graph_of(exact_products(logits_fn), images.shape[1:])
    output = len(graph.nodes) - 1
    classes = jnp.eye(graph.nodes[output].shape[-1])

    def margins_of(image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        bounds = bound_nodes(graph, image[None], threat_model, method)
        start = {output: (classes[label][None] - classes)[:, None]}  # the label's logit less that of each class
        within = functools.partial(lowest, graph, start, bounds, image[None], threat_model)
        found, values = within(), within(through_maxima=False).values
        if method != "interval":
            values = jnp.maximum(values, found.values)
        size = jnp.maximum(*map(jnp.abs, bounds.nodes[output])).max()
        return values, found.coefficients[:, 0], 1 + size

    return jax.vmap(margins_of)(images, labels)


def _checked_method(method: Method) -> Method:
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    return method


def _num_classes(logits_fn: LogitsFn, images: jax.ShapeDtypeStruct) -> int:
    found = jax.eval_shape(logits_fn, images)
    shape = getattr(found, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != images.shape[0]:
        raise ValueError(f"logits_fn returns {found} for images {list(images.shape)}; expected logits [N, K].")
    return int(shape[1])


def _at(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]


def _checked(images: jax.Array | np.ndarray, labels: jax.Array | np.ndarray, batch_size: int) -> tuple[np.ndarray, ...]:
    if isinstance(images, jax.core.Tracer) or isinstance(labels, jax.core.Tracer):
        raise ValueError("certify is called under jax.jit; expected arrays. margin_bounds is a pure function.")
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more images.")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels are {labels.dtype}{list(labels.shape)} for images {list(images.shape)}; expected whole numbers, "
            f"one for each image."
        )
    if not np.all((images >= 0) & (images <= 1)):
        raise ValueError(f"images go from {images.min()} to {images.max()}; expected [0, 1], without NaN.")
    return images, labels.astype(np.int32)
