"""Both sides from the same starts and random numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn

from benchmarks.parity import compare, ours
from benchmarks.parity.compare import Bar
from benchmarks.parity.stream import draw_stream
from benchmarks.pytorch import official_attacks, official_square
from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.checks import LogitsFn
from rap_jax.attacks.fab import boundary_to
from rap_jax.attacks.hyperplane import ONTO_HYPERPLANE
from rap_jax.attacks.norms import ThreatModel
from rap_jax.attacks.square import Square
from rap_jax.attacks.stepwise import rank_targets


class Case(NamedTuple):
    """One comparison.

    Attributes:
      logits_fn, network: the same network on both sides.
      images, labels: all classified right, [N, H, W, C] in the precision of the weights, and int32 [N].
      norm, epsilon: of the attacks.
      num_targets: classes that targeted attacks go through.
      num_steps: of APGD and FAB.
      num_queries: of Square, after the first.
    """

    logits_fn: LogitsFn
    network: nn.Module
    images: np.ndarray
    labels: np.ndarray
    norm: str
    epsilon: float
    num_targets: int = 9
    num_steps: int = 100
    num_queries: int = 5000

    @property
    def threat_model(self) -> ThreatModel:
        """Of the attacks."""
        return ThreatModel(self.norm, self.epsilon)

    @property
    def num_classes(self) -> int:
        """Of the network."""
        return int(jax.eval_shape(self.logits_fn, self.images[:1]).shape[1])

    @property
    def ranks(self) -> range:
        """Of the targets, 2 for the runner-up."""
        return range(2, 2 + self.num_targets)

    def first(self) -> np.ndarray:
        """Where APGD starts: random images on the surface of the ball, put into [0, 1]."""
        keys = jax.random.split(jax.random.key(0), len(self.images))
        directions = self.threat_model.random_direction(keys, jnp.asarray(self.images))
        return np.clip(self.images + self.epsilon * np.asarray(directions), 0, 1)


def right_examples(
    logits_fn: LogitsFn, network: nn.Module, images: np.ndarray, labels: np.ndarray, num_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first images that are classified right, and their labels, from [N, H, W, C] and [N].

    Raises:
      ValueError: the two networks differ by more than 1e-4 in a logit.
    """
    logits, others = np.asarray(jax.jit(logits_fn)(images)), official_attacks.logits_of(network, images)
    largest = np.abs(logits - others).max()
    if not largest <= 1e-4:
        raise ValueError(f"The two networks differ by {largest} in a logit; expected 1e-4 at most.")
    right = np.flatnonzero((logits.argmax(1) == labels) & (others.argmax(1) == labels))[:num_images]
    return images[right], labels[right]


def deterministic_bars(case: Case) -> list[Bar]:
    """All comparisons."""
    pieces: tuple[Callable[[Case], list[Bar]], ...] = (_losses, _projections, _apgd, _targeted_apgd, _fab, _square)
    return [bar for piece in pieces for bar in piece(case)]


def _losses(case: Case) -> list[Bar]:
    first = case.first()
    logits = official_attacks.logits_of(case.network, first)
    targets = np.asarray(_runners_up(jnp.asarray(logits)))
    arguments = logits, case.labels, targets
    found = compare.loss_bars(ours.loss_values(*arguments), official_attacks.loss_values(*arguments))
    theirs = official_attacks.image_gradients(case.network, first, case.labels)
    mine = np.asarray(ours.image_gradients(case.logits_fn, first, case.labels))
    largest = np.abs(theirs).max((1, 2, 3), keepdims=True)
    same = (np.abs(mine - theirs) <= 1e-4 * largest).all((1, 2, 3))
    return [*found, compare.share_bar("same to 1e-4 of the largest", same, None, "gradients by the image")]


def _projections(case: Case) -> list[Bar]:
    """Onto the boundary to the runner-up, linear at a start and at the image, from there."""
    linearise = jax.jit(lambda x, y, targets: boundary_to(case.logits_fn, x, y, targets))
    targets = _runners_up(jax.jit(case.logits_fn)(case.images))
    points, weights, bias = [], [], []
    for images in (case.first(), case.images):
        height, normal = linearise(images, case.labels, targets)
        points.append(images.reshape(len(images), -1))
        weights.append(np.asarray(normal).reshape(len(images), -1))
        bias.append(_products(weights[-1], points[-1]) - np.asarray(height))
    x, w, b = (np.concatenate(arrays).astype(case.images.dtype) for arrays in (points, weights, bias))
    height = (_products(w, x) - b).astype(case.images.dtype)
    mine = np.asarray(jax.jit(ONTO_HYPERPLANE[case.norm])(x, w, height))
    theirs = official_attacks.project(case.norm, x, w, b)
    return [compare.projection_bar(mine, theirs)]


def _runners_up(logits: jax.Array) -> jax.Array:
    return rank_targets(logits, jnp.zeros(len(logits), jnp.int32), 1)


def _products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left.astype(np.float64) * right.astype(np.float64)).sum(1)


def _apgd(case: Case) -> list[Bar]:
    bars, examples = [], (case.images, case.labels, case.first())
    for loss in ("ce", "dlr"):
        attack = Apgd(case.threat_model, loss, case.num_steps)
        mine = ours.apgd_recorder(case.logits_fn, attack)(examples, 0)
        theirs = official_attacks.apgd_path(case.network, examples, **_settings(case), loss=loss)
        bars += compare.path_bars(f"apgd-{loss}", [compare.path_errors(mine, theirs, case.norm)])
    return bars


def _targeted_apgd(case: Case) -> list[Bar]:
    examples = case.images, case.labels, case.first()
    attack = Apgd(case.threat_model, num_steps=case.num_steps, num_targets=case.num_targets)
    record, errors = ours.apgd_recorder(case.logits_fn, attack), []
    for rank in case.ranks:
        theirs = official_attacks.apgd_path(case.network, examples, **_settings(case), loss="", rank=rank)
        errors.append(compare.path_errors(record(examples, rank - 2), theirs, case.norm))
    return compare.path_bars("apgd-t", errors)


def _fab(case: Case) -> list[Bar]:
    bars = []
    for name, ranks in (("fab", range(1)), ("fab-t", case.ranks)):
        component = ours.component_alone(name, threat_model=case.threat_model, num_classes=case.num_classes)
        attack = dataclasses.replace(component.attack, num_steps=case.num_steps)  # type: ignore[type-var]
        mine = ours.fab_nearest(case.logits_fn, attack, case.images, case.labels, range(len(ranks)))
        theirs = official_attacks.fab_nearest(case.network, case.images, case.labels, **_settings(case), ranks=ranks)
        bars += compare.nearest_bars(name, mine, theirs)
    return bars


def _square(case: Case) -> list[Bar]:
    attack = Square(case.threat_model, case.num_queries)
    stream = draw_stream(0, case.norm, case.images.shape, case.num_queries)
    mine = ours.square_search(case.logits_fn, attack, case.images, case.labels, stream)
    settings = _settings(case) | {"num_steps": case.num_queries}
    theirs = official_square.square_search(case.network, case.images, case.labels, stream, **settings)
    return compare.search_bars("square", mine, theirs)


def _settings(case: Case) -> dict[str, Any]:
    return {"norm": case.norm, "epsilon": case.epsilon, "num_steps": case.num_steps}
