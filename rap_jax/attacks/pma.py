"""PMA, the probability margin attack: large steps that raise the probabilities first of one side, then of both.

Xie et al., "Towards Million-Scale Adversarial Robustness Evaluation With Stronger Individual Attacks", 2024,
https://arxiv.org/abs/2411.15210, and the authors' code, https://github.com/OpenTAI/taiadv. Two starts for each restart.
In the first half of the steps the first start lowers the probability of the right class, the second raises that of the
likeliest wrong one; in the second half both raise the difference, `losses.probability_margin`. So neither of the two
gradients can hide the other at first (Ma et al., "Imbalanced Gradients", 2020, https://arxiv.org/abs/2006.13726, whose
attack is the same on logits). In each half the step falls from 2 epsilon to 0 by a half cosine.

As in the authors' code: the very first step goes the other way and raises the probability of the right class, and the
step of the first half has its maximum at the second step.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rap_jax.attacks.checks import LogitsFn
from rap_jax.attacks.losses import check_labels
from rap_jax.attacks.norms import ThreatModel, finite, has_nan
from rap_jax.attacks.stepwise import AttackResult, check_settings, misclassified, run_attack, where


class PmaState(NamedTuple):
    """A batch under attack, leaves [N, ...]."""

    # Clean, [N, ...], and int [N].
    images: jax.Array
    labels: jax.Array
    raises_wrong: jax.Array  # what the first half does: raise a wrong class, or lower the right one, bool [N]
    iteration: jax.Array  # steps done, int32 [N]
    current: jax.Array  # inside the threat model, [N, ...]
    # See `AttackState`; the last misclassified image, the start where there is none.
    adversarial: jax.Array
    broken: jax.Array
    valid: jax.Array


@dataclasses.dataclass(frozen=True)
class Pma:
    """Settings of PMA, a `StepwiseAttack`."""

    threat_model: ThreatModel
    num_steps: int = 100  # gradient steps from each start
    num_restarts: int = 1  # pairs of random starts

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def num_starts(self) -> int:
        """Two for each restart."""
        return 2 * self.num_restarts

    def start(
        self, logits_fn: LogitsFn, keys: jax.Array, images: jax.Array, labels: jax.Array, starts: jax.Array
    ) -> PmaState:
        """A random point of the ball, clipped to [0, 1]; see `StepwiseAttack`."""
        first = jnp.clip(images + self.threat_model.random_start(keys, images), 0, 1)
        logits, zeros = logits_fn(first), jnp.zeros(len(images), jnp.int32)
        wrong, valid = misclassified(logits, labels), ~has_nan(logits)
        return PmaState(images, labels, starts % 2 == 1, zeros, first, first, wrong, valid)

    def advance(self, logits_fn: LogitsFn, state: PmaState, num_steps: int) -> PmaState:
        """See `StepwiseAttack`; a forward pass more than steps, for the image that the last one leads to."""
        state = lax.fori_loop(0, num_steps, lambda _, state: self.step(logits_fn, state), state)
        return _noted(state, logits_fn(state.current))

    def step(self, logits_fn: LogitsFn, state: PmaState) -> PmaState:
        """One step."""
        of_wrong, of_right = weights_of(state.iteration, state.raises_wrong, self.num_steps)

        def loss_fn(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = logits_fn(images)
            probabilities = jax.nn.softmax(logits)
            right = jax.nn.one_hot(
                check_labels(state.labels, len(logits), logits.shape[1]), logits.shape[1], dtype=bool
            )
            wrong = jnp.where(right, -jnp.inf, probabilities).max(1)
            return jnp.sum(of_wrong * wrong + of_right * jnp.where(right, probabilities, 0).sum(1)), logits

        gradient, logits = jax.grad(loss_fn, has_aux=True)(state.current)
        size = self.threat_model.epsilon * share_of(state.iteration, self.num_steps).astype(state.images.dtype)
        size = size.reshape(-1, *[1] * (state.images.ndim - 1))
        moved = state.current + size * self.threat_model.steepest(finite(gradient))
        inside = self.threat_model.perturb(state.images, moved - state.images)
        state = _noted(state, logits)
        return state._replace(current=inside, iteration=state.iteration + 1, valid=state.valid & ~has_nan(gradient))


def weights_of(iteration: jax.Array, raises_wrong: jax.Array, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """What the probability of the likeliest wrong class and that of the right one count in the loss of a step.

    Args:
      iteration: number of the step, from 0, int32 [N].
      raises_wrong: what the first half does, bool [N].
      num_steps: of the attack.

    Returns:
      Two of float32 [N].
    """
    is_first, in_half = iteration < 1, 2 * iteration < num_steps
    of_wrong = jnp.where(is_first, 0.0, jnp.where(in_half, raises_wrong.astype(jnp.float32), 1.0))
    of_right = jnp.where(is_first, 1.0, jnp.where(in_half, raises_wrong.astype(jnp.float32) - 1.0, -1.0))
    return of_wrong, of_right


def share_of(iteration: jax.Array, num_steps: int) -> jax.Array:
    """The length of a step with this number, int32 [N], over the radius: float32 [N], 0 to 2."""
    half = num_steps / 2
    number = iteration.astype(jnp.float32)
    since = jnp.where(number > half, number - half - 1, number - 1)
    return 1 + jnp.cos(since / half * jnp.pi)


def pma(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat_model: ThreatModel,
    key: jax.Array,
    num_steps: int = 100,
    num_restarts: int = 1,
) -> AttackResult:
    """PMA: `num_steps` gradients from each of two starts. The settings are those of `Pma`.

    Images, labels, key, result, errors and warnings are those of `run_attack`.
    """
    return run_attack(Pma(threat_model, num_steps, num_restarts), logits_fn, images, labels, key=key)


def _noted(state: PmaState, logits: jax.Array) -> PmaState:
    """The state that knows whether its current image, which has these logits, is misclassified."""
    wrong = misclassified(logits, state.labels)
    return state._replace(
        adversarial=where(wrong, state.current, state.adversarial),
        broken=state.broken | wrong,
        valid=state.valid & ~has_nan(logits),
    )
