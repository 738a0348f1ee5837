"""Bounds of everything that a network computes, over all images of a threat model.

    interval    forward: each node by the intervals of its operands (IBP; Gowal et al., "On the Effectiveness of
                Interval Bound Propagation", 2018, https://arxiv.org/abs/1810.12715)
    crown       backward: a linear bound of each maximum is put in the place of it, down to the images (CROWN; Zhang et
                al., "Efficient Neural Network Robustness Certification with General Activation Functions", NeurIPS
                2018, https://arxiv.org/abs/1811.00866, and for graphs Xu et al., NeurIPS 2020,
                https://arxiv.org/abs/2002.12920), once for each entry of every maximum, and for the logits
    crown_ibp   intervals inside, CROWN for the logits (Zhang et al., ICLR 2020, https://arxiv.org/abs/1906.06316)

A maximum max(a, b) is b + relu(d) with d = a - b in [l, u]. Where u <= 0 that is b, where l >= 0 it is a; else

    alpha d <= relu(d) <= u / (u - l) (d - l)        alpha 1 if u > -l, else 0

Differs from the papers: they bound max pooling by one of its operands from below and by a constant from above; here it
is a tree of maxima of two, each with the line above. Sums are taken in float32, and rounding is not bounded.

All is for one image, [1, ...], so that nothing is assumed of where a function keeps the axis of its batch.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rap_jax.attacks import ThreatModel
from rap_jax.evaluation.certificates.graph import Affine, Graph, Images, Maximum

Method = Literal["interval", "crown_ibp", "crown"]
# Numbers in the coefficients of a pass backward for one image, at most; a few arrays of them live at once. On a CPU the
# images of a batch together stay in its caches: 2^22 took twice the processor time of 2^15.
_MOST_COEFFICIENTS, _MOST_ON_CPU = 2**22, 2**15
# Share of a number that rounding may take from it, a few times over.
_DIGIT = 2.0**-21


class Interval(NamedTuple):
    """Bounds, two arrays of one shape."""

    lower: jax.Array
    upper: jax.Array


class Bounds(NamedTuple):
    """Of the nodes of a graph, by their number."""

    nodes: dict[int, Interval]
    differences: dict[int, Interval]  # first - second of each maximum


class Lowest(NamedTuple):
    """The lower bounds of linear functions of the nodes, and where the image would have to be for them."""

    values: jax.Array  # [S]
    coefficients: jax.Array  # of the image, [S, 1, ...]


def bound_nodes(graph: Graph, image: jax.Array, threat_model: ThreatModel, method: Method) -> Bounds:
    """Bounds of every node, over all images that `threat_model` allows of `image` [1, ...]."""
    found = Bounds({}, {})
    for number, node in enumerate(graph.nodes):
        if isinstance(node, Images):
            found.nodes[number] = _reach(image, threat_model)
        elif isinstance(node, Affine):
            found.nodes[number] = _affine(node, found)
        else:
            difference = _difference(node, found)
            if method == "crown":
                difference = _within(difference, _bound_difference(graph, number, found, image, threat_model))
            found.differences[number] = difference
            found.nodes[number] = _maximum(node, found, difference)
    return found


def lowest(
    graph: Graph,
    start: Mapping[int, jax.Array],
    bounds: Bounds,
    image: jax.Array,
    threat_model: ThreatModel,
    *,
    through_maxima: bool = True,
) -> Lowest:
    """Lower bounds of sums of coefficients times nodes.

    Args:
      start: number of a node -> coefficients [S, *its shape].
      bounds: of all maxima before these nodes.
      through_maxima: whether to go on behind maxima, with their linear bounds; else their intervals are taken.
    """
    coefficients = dict(start)
    total = jnp.zeros(len(next(iter(start.values()))))
    for number in range(max(start), 0, -1):
        if number not in coefficients:
            continue
        node, given = graph.nodes[number], coefficients.pop(number)
        if isinstance(node, Affine):
            total += _pull_through_affine(node, given, coefficients)
        elif isinstance(node, Maximum) and through_maxima:
            total += _pull_through_maximum(node, bounds.differences[number], given, coefficients)
        else:
            total += _least(given, bounds.nodes[number])
    at_image = coefficients.get(0)
    if at_image is None:
        return Lowest(total, jnp.zeros((len(total), *image.shape)))
    return Lowest(total + _least_in_ball(at_image, image, threat_model), at_image)


def worst_images(coefficients: jax.Array, images: jax.Array, threat_model: ThreatModel) -> jax.Array:
    """Where linear functions of these coefficients [N, ...] are least, up to [0, 1]: images of the threat model."""
    return threat_model.perturb(images, -threat_model.epsilon * threat_model.steepest(coefficients))


def _reach(image: jax.Array, threat_model: ThreatModel) -> Interval:
    """The box around the ball, within [0, 1]."""
    return Interval(jnp.maximum(image - threat_model.epsilon, 0), jnp.minimum(image + threat_model.epsilon, 1))


def _affine(node: Affine, found: Bounds) -> Interval:
    operands = [found.nodes[number] for number in node.operands]
    middle = node.apply(*((operand.lower + operand.upper) / 2 for operand in operands))
    radius = node.radius(*((operand.upper - operand.lower) / 2 for operand in operands))
    return Interval(middle - radius, middle + radius)


def _second(node: Maximum, found: Bounds) -> Interval:
    if node.second is not None:
        return found.nodes[node.second]
    assert node.constant is not None
    return Interval(node.constant, node.constant)


def _difference(node: Maximum, found: Bounds) -> Interval:
    first, second = found.nodes[node.first], _second(node, found)
    return Interval(first.lower - second.upper, first.upper - second.lower)


def _maximum(node: Maximum, found: Bounds, difference: Interval) -> Interval:
    """By its operands, and by the second one and the difference."""
    first, second = found.nodes[node.first], _second(node, found)
    rises = [jax.nn.relu(bound) for bound in difference]
    # Where the second one is large, as -1e9 for what a mask hides, its digits take those of the sum.
    lost = [_DIGIT * (jnp.abs(one) + rise) for one, rise in zip(second, rises, strict=True)]
    lower = jnp.maximum(jnp.maximum(first.lower, second.lower), second.lower + rises[0] - lost[0])
    return Interval(lower, jnp.minimum(jnp.maximum(first.upper, second.upper), second.upper + rises[1] + lost[1]))


def _within(outer: Interval, inner: Interval) -> Interval:
    """Both hold. Rounding may leave nothing between them; the middle is taken then."""
    lower, upper = jnp.maximum(outer.lower, inner.lower), jnp.minimum(outer.upper, inner.upper)
    return Interval(jnp.minimum(lower, (lower + upper) / 2), jnp.maximum(upper, (lower + upper) / 2))


def _bound_difference(
    graph: Graph, number: int, found: Bounds, image: jax.Array, threat_model: ThreatModel
) -> Interval:
    """Bounds of first - second of a maximum, by a pass backward for each of its entries."""
    node = graph.nodes[number]
    assert isinstance(node, Maximum)
    num_entries = math.prod(node.shape)
    largest = max(math.prod(each.shape) for each in graph.nodes[:number])
    most = _MOST_ON_CPU if jax.default_backend() == "cpu" else _MOST_COEFFICIENTS
    rows = max(1, min(num_entries, most // largest))
    offset = 0.0 if node.constant is None else node.constant

    def bound_rows(first: jax.Array) -> tuple[jax.Array, jax.Array]:
        unit = jax.nn.one_hot(first + jnp.arange(rows), num_entries).reshape(rows, *node.shape)
        below, above = (
            lowest(graph, _coefficients(node, sign * unit), found, image, threat_model).values for sign in (1.0, -1.0)
        )
        return below, -above

    found_rows = jax.lax.map(bound_rows, jnp.arange(0, num_entries, rows))
    return Interval(*(each.reshape(-1)[:num_entries].reshape(node.shape) - offset for each in found_rows))


def _coefficients(node: Maximum, given: jax.Array) -> dict[int, jax.Array]:
    """Of the operands in coefficients times (first - second)."""
    if node.second is None:
        return {node.first: given}
    return {node.first: given, node.second: -given}


def _pull_through_affine(node: Affine, given: jax.Array, coefficients: dict[int, jax.Array]) -> jax.Array:
    """Adds the coefficients of the operands; returns what the offset adds to the bounds, [S]."""
    zeros = [jnp.zeros(shape) for shape in node.operand_shapes]
    offset, pull_back = jax.vjp(node.apply, *zeros)
    for operand, pulled in zip(node.operands, jax.vmap(pull_back)(given), strict=True):
        coefficients[operand] = coefficients[operand] + pulled if operand in coefficients else pulled
    return _dot(given, offset) if node.has_offset else jnp.zeros(len(given))


def _pull_through_maximum(
    node: Maximum, difference: Interval, given: jax.Array, coefficients: dict[int, jax.Array]
) -> jax.Array:
    """max(a, b) = b + relu(a - b), with a line below relu where its coefficient is positive, else one above it."""
    lower, upper = difference
    is_open = (lower < 0) & (upper > 0)
    is_first = (lower >= 0).astype(given.dtype)
    slope_above = jnp.where(is_open, upper / jnp.where(is_open, upper - lower, 1), is_first)
    slope_below = jnp.where(is_open, (upper > -lower).astype(given.dtype), is_first)
    intercept = jnp.where(is_open, -slope_above * lower, 0)
    positive, negative = jnp.maximum(given, 0), jnp.minimum(given, 0)
    of_first = positive * slope_below[None] + negative * slope_above[None]
    of_second = given - of_first
    coefficients[node.first] = coefficients.get(node.first, 0) + of_first
    total = _dot(negative, intercept)
    if node.second is None:
        assert node.constant is not None
        return total + _dot(of_second, node.constant)
    coefficients[node.second] = coefficients.get(node.second, 0) + of_second
    return total


def _dot(coefficients: jax.Array, values: jax.Array) -> jax.Array:
    """Sums over all entries: [S] of [S, ...] and [...]."""
    return (coefficients * values[None]).reshape(len(coefficients), -1).sum(-1)


def _least(coefficients: jax.Array, interval: Interval) -> jax.Array:
    """The least value over a box, [S]."""
    return _dot(jnp.maximum(coefficients, 0), interval.lower) + _dot(jnp.minimum(coefficients, 0), interval.upper)


def _least_in_ball(coefficients: jax.Array, image: jax.Array, threat_model: ThreatModel) -> jax.Array:
    """The least value over the images of the threat model, or less, [S]: the better of the ball and of the box."""
    in_box = _least(coefficients, _reach(image, threat_model))
    if threat_model.norm == "linf":
        return in_box
    lengths = jnp.sqrt(jnp.square(coefficients).reshape(len(coefficients), -1).sum(-1))
    return jnp.maximum(in_box, _dot(coefficients, image) - threat_model.epsilon * lengths)
