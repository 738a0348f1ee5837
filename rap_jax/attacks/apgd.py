"""Auto-PGD: projected gradient ascent with momentum that chooses its step size by itself.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
2020, https://arxiv.org/abs/2003.01690, algorithm 1. With the loss `ce` it is APGD-CE, with `dlr` APGD-DLR, and with
targets APGD-T, on the targeted DLR loss. The step begins at 2 epsilon. At checkpoints it is halved, and the image goes
back to the best one so far, if the loss rose in too few of the steps since the last, or if its highest value has not
risen since the last, which did not halve.

Differs from the official implementation: (1) an L2 step follows a gradient of any length; theirs divides by its length
plus 1e-12, so that an example with a saturated loss hardly moves. (2) The random start of an example, and all noise of
a randomised network, follow from its own key, not from its place in a batch.

As in the official one, and unlike the paper: the very first step counts as a rise if its loss is above 0, the empty
place that the history begins with.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rap_jax.attacks.checks import LogitsFn, check_count, check_size
from rap_jax.attacks.losses import cross_entropy, dlr, probability_margin, targeted_dlr
from rap_jax.attacks.norms import ThreatModel, finite, has_nan
from rap_jax.attacks.stepwise import (
    AttackResult,
    check_settings,
    fold_in_each,
    misclassified,
    rank_targets,
    run_attack,
    where,
    with_own_keys,
)

# Shares of the steps: the first period between checkpoints, by how much each is shorter than the last, the shortest.
_FIRST_PERIOD, _SHORTER, _SHORTEST = 0.22, 0.03, 0.06
_MOMENTUM = 0.25


class ApgdState(NamedTuple):
    """Where each example is, leaves [N, ...]."""

    # What it began with; targets are the labels without a target.
    keys: jax.Array
    images: jax.Array
    labels: jax.Array
    targets: jax.Array
    iteration: jax.Array  # steps done, int32
    # The image now, the one before the last step, and the gradient of the loss now.
    current: jax.Array
    previous: jax.Array
    gradient: jax.Array
    # The image of highest loss so far.
    best: jax.Array
    best_gradient: jax.Array
    best_loss: jax.Array
    last_loss: jax.Array  # after the last step
    rises: jax.Array  # in how many steps since the last checkpoint the loss rose
    step_size: jax.Array  # for the next step
    # Whether the last checkpoint halved the step, and `best_loss` at it.
    halved: jax.Array
    checked_loss: jax.Array
    # See `AttackState`; the last misclassified image.
    adversarial: jax.Array
    broken: jax.Array
    valid: jax.Array


def move(threat_model: ThreatModel, state: ApgdState) -> jax.Array:
    """The next image: a step along the gradient, and a share of it with a share of the last change; in ball and box."""
    into = lambda x: threat_model.perturb(state.images, x - state.images)
    size = state.step_size.reshape(-1, *[1] * (state.images.ndim - 1))
    stepped = into(state.current + size * threat_model.steepest(state.gradient))
    share = where(state.iteration == 0, jnp.ones_like(size), jnp.full_like(size, 1 - _MOMENTUM))
    moved = share * (stepped - state.current) + (1 - share) * (state.current - state.previous)
    return into(state.current + moved)


def check(state: ApgdState, *, num_steps: int, rho: float) -> ApgdState:
    """At a checkpoint: halves the step and goes back to the best image where the steps since the last did not do well.

    The state is that after a step, with `iteration` not yet counted up.
    """
    periods = jnp.asarray(checkpoint_periods(num_steps))[state.iteration]
    too_few = state.rises.astype(jnp.float32) <= rho * periods.astype(jnp.float32)
    stuck = ~state.halved & (state.checked_loss >= state.best_loss)
    at_check = periods > 0
    halve = at_check & (too_few | stuck)
    return state._replace(
        # The image before this step stays the previous one, so the next momentum points away from what is given up.
        current=where(halve, state.best, state.current),
        gradient=where(halve, state.best_gradient, state.gradient),
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        halved=jnp.where(at_check, halve, state.halved),
        checked_loss=jnp.where(at_check, state.best_loss, state.checked_loss),
        rises=jnp.where(at_check, 0, state.rises),
    )


def checkpoint_periods(num_steps: int) -> np.ndarray:
    """For each step the length of the period that ends after it, or 0 where none does; int32 [num_steps]."""
    period, shorter, shortest = (max(int(share * num_steps), 1) for share in (_FIRST_PERIOD, _SHORTER, _SHORTEST))
    periods, step = np.zeros(max(num_steps, 1), np.int32), period
    while step <= num_steps:
        periods[step - 1] = period
        period = max(period - shorter, shortest)
        step += period
    return periods


Loss = Literal["ce", "dlr", "probability_margin"]
_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "probability_margin": probability_margin,
}


class _Evaluation(NamedTuple):
    """Of images [N, ...]."""

    loss: jax.Array  # -inf where it is NaN, [N]
    gradient: jax.Array  # 0 where it is NaN, [N, ...]
    wrong: jax.Array  # misclassified, bool [N]
    valid: jax.Array  # neither loss nor gradient was NaN, bool [N]


@dataclasses.dataclass(frozen=True)
class Apgd:
    """Settings of an APGD attack, a `StepwiseAttack`."""

    threat_model: ThreatModel
    # `ce`, `probability_margin`, or `dlr`, which needs 3 classes; with targets it is the targeted DLR loss, and this is
    # not read.
    loss: Loss = "ce"
    num_steps: int = 100  # gradient steps from each start
    # 0, or how many classes are aimed at, those ranked 2, 3, ... for the clean image; needs 4 classes.
    num_targets: int = 0
    num_restarts: int = 1  # random starts, for each target; the first that breaks an example counts
    rho: float = 0.75  # a step is halved if the loss rose in no more than this share of the steps
    # 0 for a network that is a function; for a randomised one, `logits_fn(images, key)`, over how many draws the
    # gradient is averaged (expectation over transformation). Loss and class are those of the last draw, as in the
    # official implementation. It is called for one image at a time, by `jax.vmap`, each with a key of its own.
    num_samples: int = 0

    def __post_init__(self) -> None:
        targets = check_count("num_targets", self.num_targets, 0, "0 targets")
        samples = check_count("num_samples", self.num_samples, 0, "0 samples")
        check_settings(self, num_targets=targets, num_samples=samples)
        if not check_size("rho", self.rho) <= 1:
            raise ValueError(f"rho is {self.rho!r}; expected a share of the steps, 0 to 1, such as the paper's 0.75.")
        if self.loss not in _LOSSES:
            raise ValueError(f"loss is {self.loss!r}; expected one of {', '.join(_LOSSES)}.")

    @property
    def num_starts(self) -> int:
        """Restarts, times targets; all restarts of a target in a row."""
        return self.num_restarts * max(1, self.num_targets)

    def start(
        self, logits_fn: LogitsFn, keys: jax.Array, images: jax.Array, labels: jax.Array, starts: jax.Array
    ) -> ApgdState:
        """A random point of the ball's surface, clipped to [0, 1]; see `StepwiseAttack`.

        Raises:
          ValueError: more targets than there are wrong classes.
        """
        perturbation = self.threat_model.epsilon * self.threat_model.random_direction(keys, images)
        return self.start_at(logits_fn, keys, images, labels, starts, jnp.clip(images + perturbation, 0, 1))

    def start_at(
        self,
        logits_fn: LogitsFn,
        keys: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        starts: jax.Array,
        first: jax.Array,
    ) -> ApgdState:
        """Like `start`, from given images `first` [N, ...] inside ball and box."""
        num_examples = len(images)
        targets, iteration = self._targets(logits_fn, keys, images, labels, starts), jnp.zeros(num_examples, jnp.int32)
        loss, gradient, wrong, valid = self._evaluate(logits_fn, keys, first, labels, targets, iteration)
        return ApgdState(
            keys=keys,
            images=images,
            labels=labels,
            targets=targets,
            iteration=iteration,
            current=first,
            previous=first,
            gradient=gradient,
            best=first,
            best_gradient=gradient,
            best_loss=loss,
            last_loss=jnp.zeros_like(loss),
            rises=jnp.zeros(num_examples, jnp.int32),
            step_size=jnp.full_like(loss, 2 * self.threat_model.epsilon),
            halved=jnp.ones(num_examples, bool),
            checked_loss=loss,
            adversarial=first,
            broken=wrong,
            valid=valid,
        )

    def advance(self, logits_fn: LogitsFn, state: ApgdState, num_steps: int) -> ApgdState:
        """See `StepwiseAttack`."""
        return lax.fori_loop(0, num_steps, lambda _, state: self.step(logits_fn, state), state)

    def step(self, logits_fn: LogitsFn, state: ApgdState) -> ApgdState:
        """One step and what follows from it."""
        current = move(self.threat_model, state)
        loss, gradient, wrong, valid = self._evaluate(
            logits_fn, state.keys, current, state.labels, state.targets, state.iteration + 1
        )
        better = loss > state.best_loss
        state = state._replace(
            previous=state.current,
            current=current,
            gradient=gradient,
            best=where(better, current, state.best),
            best_gradient=where(better, gradient, state.best_gradient),
            best_loss=jnp.where(better, loss, state.best_loss),
            rises=state.rises + (loss > state.last_loss).astype(jnp.int32),
            last_loss=loss,
            adversarial=where(wrong, current, state.adversarial),
            broken=state.broken | wrong,
            valid=state.valid & valid,
        )
        return check(state, num_steps=self.num_steps, rho=self.rho)._replace(iteration=state.iteration + 1)

    def _targets(
        self, logits_fn: LogitsFn, keys: jax.Array, images: jax.Array, labels: jax.Array, starts: jax.Array
    ) -> jax.Array:
        if self.num_targets == 0:
            return labels
        logits = with_own_keys(logits_fn)(images, keys) if self.num_samples else logits_fn(images)
        return rank_targets(logits, starts // self.num_restarts, self.num_targets).astype(labels.dtype)

    def _evaluate(
        self,
        logits_fn: LogitsFn,
        keys: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        targets: jax.Array,
        iteration: jax.Array,
    ) -> _Evaluation:
        """Of images [N, ...]; `iteration` [N] numbers the draws of each example."""

        def total_loss(x: jax.Array, *draws: jax.Array) -> tuple[jax.Array, Any]:
            logits = with_own_keys(logits_fn)(x, *draws) if draws else logits_fn(x)
            loss = targeted_dlr(logits, labels, targets) if self.num_targets else _LOSSES[self.loss](logits, labels)
            return loss.sum(), (loss, misclassified(logits, labels))

        def evaluate(*draws: jax.Array) -> _Evaluation:
            gradient, (loss, wrong) = jax.grad(total_loss, has_aux=True)(images, *draws)
            nan = jnp.isnan(loss)  # as it is where a logit is
            return _Evaluation(jnp.where(nan, -jnp.inf, loss), finite(gradient), wrong, ~(nan | has_nan(gradient)))

        if self.num_samples == 0:
            return evaluate()
        keys = jax.vmap(jax.random.fold_in)(keys, iteration)
        # One after the other: side by side they would take so many times the memory.
        samples = lax.map(lambda number: evaluate(fold_in_each(keys, number)), jnp.arange(self.num_samples))
        return _Evaluation(samples.loss[-1], samples.gradient.mean(0), samples.wrong[-1], samples.valid.all(0))


def apgd(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat_model: ThreatModel,
    key: jax.Array,
    loss: Loss = "ce",
    num_steps: int = 100,
    num_restarts: int = 1,
) -> AttackResult:
    """APGD-CE (loss `ce`), APGD-DLR (`dlr`, for 3 classes or more) or APGD on `losses.probability_margin`.

    The settings are those of `Apgd`.

    Images, labels, key, result, errors and warnings are those of `run_attack`.
    """
    attack = Apgd(threat_model, loss, num_steps, num_restarts=num_restarts)
    return run_attack(attack, logits_fn, images, labels, key=key)


def apgd_targeted(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat_model: ThreatModel,
    key: jax.Array,
    num_targets: int = 9,
    num_steps: int = 100,
    num_restarts: int = 1,
) -> AttackResult:
    """APGD-T, for 4 classes or more: towards the `num_targets` most likely wrong classes, one after the other.

    The settings are those of `Apgd`; `num_targets` is below the number of classes. Images, labels, key, result, errors
    and warnings are those of `run_attack`.
    """
    attack = Apgd(threat_model, num_steps=num_steps, num_targets=num_targets, num_restarts=num_restarts)
    return run_attack(attack, logits_fn, images, labels, key=key)
