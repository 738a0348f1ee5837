"""Square: random search without gradients, square windows at random places.

Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", 2020,
https://arxiv.org/abs/1912.00049, algorithms 1 to 3; the margin loss, and the schedule that AutoAttack runs it with. A
candidate replaces the best image so far if it lowers the margin of the right class, or is misclassified. Images are
changed on the borders of the ball only: under Linf stripes, then windows of one sign per channel; under L2 patterns of
two bumps, paid for with the perturbation of another window.

Differs from the official implementation:
(1) Places and signs are drawn for each example from its own key. There all examples of a batch share the places, and
    under Linf the signs too.
(2) A window may lie at the last row and column, as in the paper; there they are never drawn, so that these pixels
    keep the perturbation that they began with.
(3) `broken` is what `argmax` of the logits says. At a tie that it gives to the right class, which there ends the
    attack without success, the candidate is accepted as there, and the attack goes on.
(4) Under L2, images of any shape have tiles to begin with. There the last tile must end with the image, or it fails.
(5) Under Linf most candidates that equal the image, whose window has that sign already, are counted without a query:
    they change nothing.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.checks import LogitsFn, check_count
from rap_jax.attacks.losses import margin
from rap_jax.attacks.norms import ThreatModel, has_nan
from rap_jax.attacks.square_candidates import CANDIDATES, HALVINGS, draw, draw_first, window_sides
from rap_jax.attacks.stepwise import AttackResult, check_settings, misclassified, run_attack, where

# Candidates that are drawn at a time: the first that changes the image is asked about, else the last. Patterns of L2
# always change it. A third candidate saved 3% more queries on MNIST and cost as much.
_DRAWN_AHEAD = {"linf": 2, "l2": 1}


class SquareState(NamedTuple):
    """Where each example is in the search, leaves [N, ...]."""

    keys: jax.Array  # typed keys, all randomness of an example
    # Clean, [N, H, W, C], and int.
    images: jax.Array
    labels: jax.Array
    iteration: jax.Array  # candidates asked about, int32; it stops when the example is broken
    adversarial: jax.Array  # the best image so far, inside the threat model, [N, H, W, C]
    # Of its best wrong logit over the right one, and whether it is misclassified.
    margin: jax.Array
    broken: jax.Array
    valid: jax.Array  # see `AttackState`
    # `iteration` when the steps so far are done, int32. Examples whose candidates change nothing may be ahead of it.
    due: jax.Array


@dataclasses.dataclass(frozen=True)
class Square:
    """Settings of a Square attack, a `StepwiseAttack`. Images are [N, H, W, C]; no gradient is taken."""

    threat_model: ThreatModel
    num_steps: int = 5000  # candidates after the first image, for each of which the network is asked once
    num_restarts: int = 1  # independent searches; the first that breaks an example counts
    initial_share: float = 0.8  # of the image that the first windows cover, in (0, 1] (p in the paper)

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 < self.initial_share <= 1:
            raise ValueError(f"initial_share is {self.initial_share!r}; expected above 0 and up to 1.")

    @property
    def num_starts(self) -> int:
        """One for each restart."""
        return self.num_restarts

    @property
    def last_query(self) -> int:
        """Number of the last candidate."""
        return self.num_steps

    def start(
        self, logits_fn: LogitsFn, keys: jax.Array, images: jax.Array, labels: jax.Array, starts: jax.Array
    ) -> SquareState:
        """Stripes (Linf) or tiles (L2) of random signs; see `StepwiseAttack`.

        Raises:
          ValueError: images that are not [N, H, W, C].
        """
        del starts  # the keys differ already
        if images.ndim != 4:
            raise ValueError(f"images have shape {list(images.shape)}; expected [N, H, W, C], as Square moves windows.")
        _, height, width, num_channels = images.shape
        candidates = CANDIDATES[self.threat_model.norm]
        draws = draw_first(keys, candidates.grid(height, width), num_channels)
        first = candidates.first(images, draws, self.threat_model.epsilon)
        first_margin, wrong = ask(logits_fn, first, labels)
        iteration = jnp.zeros(len(images), jnp.int32)
        valid = first_margin > -jnp.inf
        return SquareState(keys, images, labels, iteration, first, first_margin, wrong, valid, iteration)

    def advance(self, logits_fn: LogitsFn, state: SquareState, num_steps: int) -> SquareState:
        """See `StepwiseAttack`. Ends early when no example is left that is not broken.

        An example may go on beyond these steps, but not beyond the last candidate: it is only waited for later.
        """
        state = state._replace(due=state.due + jnp.minimum(num_steps, self.last_query - state.due))
        is_behind = lambda state: (~state.broken & (state.iteration < state.due)).any()
        return lax.while_loop(is_behind, lambda state: self.step(logits_fn, state), state)

    def step(self, logits_fn: LogitsFn, state: SquareState) -> SquareState:
        """One query for each example that is not broken and not at its end."""
        number, candidate = self._draw_ahead(state)
        new_margin, wrong = ask(logits_fn, candidate, state.labels)
        asked = ~state.broken & (number <= self.last_query)
        found = accept(state, candidate, jnp.where(asked, new_margin, -jnp.inf), wrong)
        return found._replace(
            iteration=jnp.where(state.broken, state.iteration, jnp.minimum(number, self.last_query)),
            valid=state.valid & (~asked | (new_margin > -jnp.inf)),
        )

    def _draw_ahead(self, state: SquareState) -> tuple[jax.Array, jax.Array]:
        """Of the next candidates the first that changes the image, [N, H, W, C], else the last; its number, [N]."""
        _, height, width, num_channels = state.images.shape

        def draw_one(number: jax.Array) -> jax.Array:
            draws, sides = draw(state.keys, number, num_channels), self.sides(number - 1, height, width)
            next_image = CANDIDATES[self.threat_model.norm].next
            return next_image(state.images, state.adversarial, draws, sides, self.threat_model.epsilon)

        if _DRAWN_AHEAD[self.threat_model.norm] == 1:
            return state.iteration + 1, draw_one(state.iteration + 1)
        ahead = jnp.arange(_DRAWN_AHEAD[self.threat_model.norm], dtype=jnp.int32)
        drawn = jax.vmap(lambda place: draw_one(state.iteration + 1 + place))(ahead)
        candidate, chosen = drawn[-1], jnp.full_like(state.iteration, ahead[-1])
        for place in reversed(range(len(ahead) - 1)):
            changes = (drawn[place] != state.adversarial).any((1, 2, 3))
            candidate, chosen = where(changes, drawn[place], candidate), jnp.where(changes, place, chosen)
        return state.iteration + 1 + chosen, candidate

    def sides(self, iteration: jax.Array, height: int, width: int) -> jax.Array:
        """Of the windows in pixels, int32 [N], when so many candidates have been asked about, int32 [N]."""
        halvings = (iteration[:, None] > jnp.asarray(HALVINGS, jnp.int32)[None]).sum(1)
        sides = window_sides(self.threat_model.norm, height, width, self.initial_share)
        return jnp.asarray(sides, jnp.int32)[halvings]


@dataclasses.dataclass(frozen=True)
class HybridSquare(Square):
    """Square that begins at the image of the highest cross-entropy on the way of APGD, instead of at stripes.

    A gradient that misleads still leads to where the margin is low, and the search goes on from there. Suya et al.,
    "Hybrid Batch Attacks: Finding Black-box Adversarial Examples with Limited Queries", 2020,
    https://arxiv.org/abs/1908.07000, begin the search at what breaks other networks; here it is the network itself.
    """

    gradient_steps: int = 100  # of APGD, before the first candidate
    # Where in the schedule of the window sides the search begins: large windows would undo what APGD has found.
    first_query: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, unit in (("gradient_steps", "steps"), ("first_query", "queries")):
            object.__setattr__(self, name, check_count(name, getattr(self, name), 0, f"0 {unit}"))

    @property
    def last_query(self) -> int:
        """See `Square`."""
        return self.first_query + self.num_steps

    def start(
        self, logits_fn: LogitsFn, keys: jax.Array, images: jax.Array, labels: jax.Array, starts: jax.Array
    ) -> SquareState:
        """APGD from a random start; see `StepwiseAttack`. An example that APGD breaks is broken."""
        apgd = Apgd(self.threat_model, num_steps=self.gradient_steps)
        ascent = apgd.advance(logits_fn, apgd.start(logits_fn, keys, images, labels, starts), self.gradient_steps)
        first = where(ascent.broken, ascent.adversarial, ascent.best)
        first_margin, wrong = ask(logits_fn, first, labels)
        state = super().start(logits_fn, keys, images, labels, starts)
        iteration = jnp.full(len(images), self.first_query, jnp.int32)
        return state._replace(
            iteration=iteration,
            due=iteration,
            adversarial=first,
            margin=first_margin,
            broken=wrong,
            valid=ascent.valid & (first_margin > -jnp.inf),
        )


def ask(logits_fn: LogitsFn, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One query: `losses.margin` of the images [N], and whether they are misclassified, bool [N].

    The margin is -inf where logits are NaN: such an image is accepted for no other.
    """
    logits = lax.stop_gradient(logits_fn(images))
    return jnp.where(has_nan(logits), -jnp.inf, margin(logits, labels)), misclassified(logits, labels)


def accept(state: SquareState, candidate: jax.Array, new_margin: jax.Array, wrong: jax.Array) -> SquareState:
    """The state after a query about `candidate` [N, H, W, C], which takes the place of what is worse."""
    searching = ~state.broken
    better = searching & ((new_margin > state.margin) | (new_margin >= 0))
    return state._replace(
        iteration=state.iteration + searching.astype(jnp.int32),
        adversarial=where(better, candidate, state.adversarial),
        margin=jnp.where(better, new_margin, state.margin),
        broken=state.broken | (better & wrong),
    )


def square(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat_model: ThreatModel,
    key: jax.Array,
    num_steps: int = 5000,
    num_restarts: int = 1,
) -> AttackResult:
    """Square: `num_steps` queries after the first, no gradient. The settings are those of `Square`.

    Images, labels, key, result, errors and warnings are those of `run_attack`.
    """
    return run_attack(Square(threat_model, num_steps, num_restarts), logits_fn, images, labels, key=key)
