"""PGD in pieces, as `stepwise` has it: the steps of `pgd`, for whoever wants to stop when an example is broken.

Differs from `pgd`: (1) it sees the logits, and an example is broken as soon as any image on its way is misclassified,
not only the last one; (2) restarts come one after the other, and an example that is broken needs no further one. So it
never breaks fewer examples than `pgd` from the same starts.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rap_jax.attacks.checks import LogitsFn, check_size
from rap_jax.attacks.losses import cross_entropy, margin
from rap_jax.attacks.norms import ThreatModel, finite, has_nan
from rap_jax.attacks.stepwise import check_settings, misclassified, where

Loss = Literal["ce", "margin"]
_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"ce": cross_entropy, "margin": margin}


class PgdState(NamedTuple):
    """A batch under attack."""

    # Clean, [N, ...], and int [N].
    images: jax.Array
    labels: jax.Array
    # The image that the last step led to, inside the threat model, [N, ...].
    current: jax.Array
    # The last misclassified image, [N, ...], the start where there is none; and whether there is one, bool [N].
    adversarial: jax.Array
    broken: jax.Array
    # See `AttackState`.
    valid: jax.Array


@dataclasses.dataclass(frozen=True)
class Pgd:
    """Settings of PGD from random starts, a `StepwiseAttack`."""

    threat_model: ThreatModel
    # Length of a step in the norm and units of the radius.
    step_size: float
    # What rises: `ce`, or `margin`, whose gradient does not vanish where the network is sure.
    loss: Loss = "ce"
    # Gradient steps from each start.
    num_steps: int = 40
    # Random starts.
    num_restarts: int = 1

    def __post_init__(self) -> None:
        check_settings(self, step_size=check_size("step_size", self.step_size))
        if self.loss not in _LOSSES:
            raise ValueError(f"loss is {self.loss!r}; expected one of {', '.join(_LOSSES)}.")

    @property
    def num_starts(self) -> int:
        """One for each restart."""
        return self.num_restarts

    def start(
        self, logits_fn: LogitsFn, keys: jax.Array, images: jax.Array, labels: jax.Array, starts: jax.Array
    ) -> PgdState:
        """A random point of the ball, clipped to [0, 1]; see `StepwiseAttack`."""
        del starts  # the keys differ from start to start
        first = jnp.clip(images + self.threat_model.random_start(keys, images), 0, 1)
        logits = logits_fn(first)
        return PgdState(images, labels, first, first, misclassified(logits, labels), ~has_nan(logits))

    def advance(self, logits_fn: LogitsFn, state: PgdState, num_steps: int) -> PgdState:
        """See `StepwiseAttack`; a forward pass more than steps, for the image that the last one leads to."""
        state = lax.fori_loop(0, num_steps, lambda _, state: self._step(logits_fn, state), state)
        return _noted(state, logits_fn(state.current))

    def _step(self, logits_fn: LogitsFn, state: PgdState) -> PgdState:
        def loss_fn(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = logits_fn(images)
            return jnp.sum(_LOSSES[self.loss](logits, state.labels)), logits

        gradient, logits = jax.grad(loss_fn, has_aux=True)(state.current)
        moved = state.current + self.step_size * self.threat_model.steepest(finite(gradient))
        inside = self.threat_model.perturb(state.images, moved - state.images)
        state = _noted(state, logits)
        return state._replace(current=inside, valid=state.valid & ~has_nan(gradient))


def _noted(state: PgdState, logits: jax.Array) -> PgdState:
    """The state that knows whether its current image, which has these logits, is misclassified."""
    wrong = misclassified(logits, state.labels)
    return state._replace(
        adversarial=where(wrong, state.current, state.adversarial),
        broken=state.broken | wrong,
        valid=state.valid & ~has_nan(logits),
    )
