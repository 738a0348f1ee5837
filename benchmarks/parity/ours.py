"""The attacks of rap_jax with their randomness given, and what they did."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.parity.stream import Stream, official_places, our_corners
from benchmarks.parity.traces import LossValues, Nearest, Path, Search
from rap_jax.attacks.apgd import Apgd, move
from rap_jax.attacks.checks import LogitsFn
from rap_jax.attacks.losses import cross_entropy, dlr, margin, targeted_dlr
from rap_jax.attacks.norms import ThreatModel
from rap_jax.attacks.square import Square, SquareState, accept, ask
from rap_jax.attacks.square_candidates import CANDIDATES, Draws, FirstDraws
from rap_jax.evaluation.auto_attack.versions import VERSIONS, Component, components_of

Arrays = tuple[np.ndarray, ...]


def component_alone(name: str, *, threat_model: ThreatModel, num_classes: int) -> Component:
    """The component of AutoAttack called `name`, with one restart.

    Raises:
      ValueError: there is none.
    """
    for version in VERSIONS:
        for component in components_of(version, threat_model=threat_model, num_classes=num_classes):
            if component.name == name and version != "rand":
                attack: Any = component.attack
                return component._replace(attack=dataclasses.replace(attack, num_restarts=1))
    raise ValueError(f"part is {name!r}; expected one of AutoAttack's for {num_classes} classes.")


def loss_values(logits: np.ndarray, labels: np.ndarray, targets: np.ndarray) -> dict[str, LossValues]:
    """The losses of logits [N, K], by name."""
    losses: dict[str, Callable[[jax.Array], jax.Array]] = {
        "ce": lambda z: cross_entropy(z, jnp.asarray(labels)),
        "dlr": lambda z: dlr(z, jnp.asarray(labels)),
        "targeted dlr": lambda z: targeted_dlr(z, jnp.asarray(labels), jnp.asarray(targets)),
        "margin": lambda z: margin(z, jnp.asarray(labels)),
    }
    found = {}
    for name, loss in losses.items():
        values, pull_back = jax.vjp(loss, jnp.asarray(logits))
        found[name] = LossValues(np.asarray(values), np.asarray(pull_back(jnp.ones_like(values))[0]))
    return found


def image_gradients(logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The gradient of the cross-entropy of each image, [N, H, W, C]."""
    total = lambda x: cross_entropy(logits_fn(x), jnp.asarray(labels)).sum()
    return np.asarray(jax.jit(jax.grad(total))(images))


def apgd_recorder(logits_fn: LogitsFn, attack: Apgd) -> Callable[[Arrays, int], Path]:
    """A function of (images, labels, first images) and the number of a start that runs APGD from these first images."""

    @jax.jit
    def record(images: jax.Array, labels: jax.Array, first: jax.Array, start: jax.Array) -> Any:
        keys = jax.random.split(jax.random.key(0), len(images))
        starts = jnp.full(len(images), start, jnp.int32)
        state = attack.start_at(logits_fn, keys, images, labels, starts, first)
        begun = first, state.best_loss, state.broken

        def step(state: Any, _: None) -> Any:
            # What the step is going to ask about: a checkpoint may put another image in its place at once.
            queried = move(attack.threat_model, state)
            state = attack.step(logits_fn, state)
            return state, (queried, state.last_loss, logits_fn(queried).argmax(-1) != labels)

        end, rest = lax.scan(step, state, length=attack.num_steps)
        queries = jax.tree.map(lambda one, others: jnp.concatenate([one[None], others]), begun, rest)
        return *queries, end.broken, end.best_loss

    def run(examples: Arrays, start: int) -> Path:
        return Path(np.arange(attack.num_steps + 1), *jax.device_get(record(*examples, start)))

    return run


def fab_nearest(
    logits_fn: LogitsFn, attack: Any, images: np.ndarray, labels: np.ndarray, starts: Sequence[int]
) -> Nearest:
    """What FAB finds from each of `starts`, which draw nothing."""

    @jax.jit
    def run(images: jax.Array, labels: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(jax.random.key(0), len(images))
        state = attack.start(logits_fn, keys, images, labels, jnp.full(len(images), start, jnp.int32))
        state = attack.advance(logits_fn, state, attack.num_steps)
        return state.adversarial, state.broken

    found = [jax.device_get(run(images, labels, start)) for start in starts]
    return Nearest(*(np.stack(leaves) for leaves in zip(*found, strict=True)))


def square_search(
    logits_fn: LogitsFn, attack: Square, images: np.ndarray, labels: np.ndarray, stream: Stream
) -> Search:
    """Square with the random numbers of a stream, windows where the official code puts them."""
    num_images, height, width, _ = images.shape
    candidates = CANDIDATES[attack.threat_model.norm]
    over_images = lambda x: jnp.broadcast_to(x, (num_images, *jnp.shape(x)))

    @jax.jit
    def run(images: jax.Array, labels: jax.Array, draws: Draws, sides: jax.Array) -> Any:
        first_draws = FirstDraws(jnp.asarray(stream.first_signs), over_images(stream.first_transposed))
        first = candidates.first(images, first_draws, attack.threat_model.epsilon)
        keys = jax.random.split(jax.random.key(0), num_images)
        asked = ask(logits_fn, first, labels)
        none = jnp.zeros(num_images, jnp.int32)
        state = SquareState(keys, images, labels, none, first, *asked, jnp.ones(num_images, bool), none)

        def step(state: SquareState, drawn: tuple[Draws, jax.Array]) -> tuple[SquareState, None]:
            draws, side = jax.tree.map(over_images, drawn)
            candidate = candidates.next(images, state.adversarial, draws, side, attack.threat_model.epsilon)
            return accept(state, candidate, *ask(logits_fn, candidate, labels)), None

        end = lax.scan(step, state, (draws, sides))[0]
        return end.adversarial, end.iteration + 1, end.broken

    sides = np.asarray(attack.sides(jnp.arange(attack.num_steps), height, width))
    return Search(*jax.device_get(run(images, labels, _draws(stream, sides, height, width), sides)))


def _draws(stream: Stream, sides: np.ndarray, height: int, width: int) -> Draws:
    """Those of all candidates, leaves [T, ...]."""

    def place(corners: np.ndarray) -> np.ndarray:
        both = zip(corners.T, (height, width), strict=True)
        return np.stack([our_corners(official_places(u, sides, length), sides, length) for u, length in both], axis=1)

    return Draws(place(stream.corners), place(stream.other_corners), stream.transposed, stream.signs)  # type: ignore[arg-type]
