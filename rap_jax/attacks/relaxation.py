"""Constraint relaxation: margin steps that may leave the ball for a while, towards few classes, and give up early.

"Efficient Robustness Evaluation via Constraint Relaxation", the authors' code
https://github.com/fzjcdt/constraint-relaxation-attack. Ten steps of PGD on cross-entropy find the likeliest wrong
classes. Towards each of them steps of s epsilon on the difference of two logits follow, in cycles of 30: ten at radius
(1 + s) epsilon, ten at epsilon, then a jump to radius (1 - s) epsilon with noise of s epsilon, and ten at epsilon. s is
1/2 in the first cycle and halved in each further one, down to 0.05. A class is given up where after 20 steps of a cycle
the label is ahead by more than s. Classes that came within 0.05 are tried again from another start.

An image that nothing breaks costs about 50 steps, where APGD-T takes 900. Whether a class is given up depends on the
scale of the logits. It needs gradients that do not mislead.

Differs from the authors' code: (1) an image is broken as soon as it is misclassified inside the ball, whichever class
it gets; there it has to be the class that is aimed at, but for the first steps of a cycle. (2) L2 as well. (3) Each
example has its own key.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rap_jax.attacks.checks import LogitsFn, check_count
from rap_jax.attacks.losses import cross_entropy, margin
from rap_jax.attacks.norms import NORMS, ThreatModel, check_threat_model, finite, has_nan
from rap_jax.attacks.stepwise import AttackResult, fold_in_each, misclassified, run_attack, where

_CYCLE, _THIRD = 30, 10
_LARGEST_SHARE, _SMALLEST_SHARE = 0.5, 0.05
# Of the label over the class that is aimed at: with less the class is worth another start.
_NEAR = 0.05
_PGD_STEPS, _PGD_SHARE = 10, 0.5


class RelaxationState(NamedTuple):
    """Where each example is, leaves [N, ...]."""

    keys: jax.Array
    # Clean, [N, ...], and int [N].
    images: jax.Array
    labels: jax.Array
    targets: jax.Array  # classes to reach, the likeliest first, int32 [N, T]
    target: jax.Array  # the number of the one that is aimed at now, int32 [N]
    restarts: jax.Array  # passes through the targets that are done, int32 [N]
    # Targets of this pass, and those that came near in it, bool [N, T].
    wanted: jax.Array
    near: jax.Array
    iteration: jax.Array  # steps towards this target, int32 [N]
    draws: jax.Array  # steps since the start, by which random numbers are drawn, int32 [N]
    current: jax.Array  # where the next step begins, which may be outside of the ball, [N, ...]
    # See `AttackState`; and whether there is nothing left to try.
    adversarial: jax.Array
    broken: jax.Array
    valid: jax.Array
    finished: jax.Array


class _Moved(NamedTuple):
    """What a step has led to."""

    current: jax.Array
    judged: jax.Array  # an image inside the threat model
    wrong: jax.Array  # whether it is misclassified, bool [N]
    ahead: jax.Array  # by how much the label is ahead, of the target or of all classes, [N]
    valid: jax.Array


@dataclasses.dataclass(frozen=True)
class Relaxation:
    """Settings of constraint relaxation, a `StepwiseAttack`; those of the authors.

    Raises:
      ValueError: an impossible number; in `start`: more targets than there are.
    """

    threat_model: ThreatModel
    num_targets: int = 3
    num_restarts: int = 5  # passes through the targets, of which all but the first take those that came near
    steps_per_target: int = 150

    def __post_init__(self) -> None:
        check_threat_model(self.threat_model)
        for name, unit in (("num_targets", "target"), ("num_restarts", "restart"), ("steps_per_target", "step")):
            object.__setattr__(self, name, check_count(name, getattr(self, name), 1, f"1 {unit}"))

    @property
    def num_starts(self) -> int:
        """One: restarts depend on what the start before has found."""
        return 1

    @property
    def num_steps(self) -> int:
        """The most that an example takes; most of them have `finished` long before."""
        return self.num_restarts * self.num_targets * self.steps_per_target

    @property
    def steps_between_looks(self) -> int:
        """After which AutoAttack looks for examples that are done."""
        return _THIRD

    def start(
        self, logits_fn: LogitsFn, keys: jax.Array, images: jax.Array, labels: jax.Array, starts: jax.Array
    ) -> RelaxationState:
        """PGD, which chooses the targets, and a random point of the ball; see `StepwiseAttack`."""
        del starts  # there is one
        first = jnp.clip(images + self.threat_model.random_start(fold_in_each(keys, 0), images), 0, 1)
        targets, adversarial, broken, valid = self._pgd(logits_fn, first, images, labels)
        zeros, none = jnp.zeros(len(images), jnp.int32), jnp.zeros(targets.shape, bool)
        state = RelaxationState(
            keys, images, labels, targets, zeros, zeros, ~none, none, zeros, zeros, images, adversarial, broken, valid,
            jnp.zeros(len(images), bool),
        )  # fmt: skip
        return self._begin_target(state, ~state.finished)

    def advance(self, logits_fn: LogitsFn, state: RelaxationState, num_steps: int) -> RelaxationState:
        """See `StepwiseAttack`. Ends early when no example is left that is neither broken nor finished."""

        def go_on(carry: tuple[jax.Array, RelaxationState]) -> jax.Array:
            steps, state = carry
            return (steps < num_steps) & ~(state.broken | state.finished).all()

        def step(carry: tuple[jax.Array, RelaxationState]) -> tuple[jax.Array, RelaxationState]:
            steps, state = carry
            return steps + 1, self.step(logits_fn, state)

        return lax.while_loop(go_on, step, (jnp.zeros((), jnp.int32), state))[1]

    def step(self, logits_fn: LogitsFn, state: RelaxationState) -> RelaxationState:
        """One step, and what follows from it."""
        moved, number = self._move(logits_fn, state), jax.nn.one_hot(state.target, self.num_targets, dtype=bool)
        new = moved.wrong & ~(state.broken | state.finished)
        phase = state.iteration % _CYCLE
        gives_up = (phase == 2 * _THIRD - 1) & (moved.ahead > share_of(state.iteration))
        over = gives_up | (state.iteration + 1 >= self.steps_per_target)
        state = state._replace(
            current=moved.current,
            near=state.near | (number & (moved.ahead < _NEAR)[:, None]),
            iteration=state.iteration + 1,
            draws=state.draws + 1,
            adversarial=where(new, moved.judged, state.adversarial),
            broken=state.broken | new,
            valid=state.valid & (moved.valid | state.broken | state.finished),
        )
        return self._begin_target(self._next_target(state, over), over)

    def _pgd(
        self, logits_fn: LogitsFn, first: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The targets [N, T], and of all images on the way the last misclassified one, whether there is one, and valid.

        Raises:
          ValueError: more targets than wrong classes.
        """

        def step(
            number: jax.Array, carry: tuple[jax.Array, AttackResult, jax.Array]
        ) -> tuple[jax.Array, AttackResult, jax.Array]:
            current, found, valid = carry
            loss = lambda x: _with(cross_entropy, logits_fn(x), labels)
            gradient, logits = jax.grad(loss, has_aux=True)(current)
            share = jnp.where(number == _PGD_STEPS // 2, _PGD_SHARE / 2, _PGD_SHARE)
            ascent = share * self.threat_model.epsilon * self.threat_model.steepest(finite(gradient))
            after = self.threat_model.perturb(images, current + ascent.astype(images.dtype) - images)
            return after, _noted(found, current, logits, labels), valid & ~(has_nan(gradient) | has_nan(logits))

        nothing = AttackResult(first, jnp.zeros(len(images), bool))
        current, found, valid = lax.fori_loop(0, _PGD_STEPS, step, (first, nothing, ~nothing.broken))
        logits = logits_fn(current)
        found, valid = _noted(found, current, logits, labels), valid & ~has_nan(logits)
        if self.num_targets > logits.shape[1] - 1:
            expected = f"expected at most {logits.shape[1] - 1} with {logits.shape[1]} classes"
            raise ValueError(f"num_targets is {self.num_targets}; {expected}.")
        wrong_ones = jnp.where(jax.nn.one_hot(labels, logits.shape[1], dtype=bool), -jnp.inf, logits)
        targets = jnp.argsort(wrong_ones, axis=1, descending=True)[:, : self.num_targets].astype(jnp.int32)
        return targets, found.adversarial, found.broken, valid

    def _move(self, logits_fn: LogitsFn, state: RelaxationState) -> _Moved:
        """A step on the difference of two logits, and an image inside the ball."""
        phase, share = state.iteration % _CYCLE, _by_example(share_of(state.iteration), state.images)
        size = self.threat_model.epsilon * share
        begin = where(phase == 2 * _THIRD, self._jump(state, share), state.current)
        target = jnp.take_along_axis(state.targets, state.target[:, None], axis=1)[:, 0]
        gradient, logits = jax.grad(lambda x: _with(_difference, logits_fn(x), state.labels, target), has_aux=True)(
            begin
        )
        stepped = begin + size * self.threat_model.steepest(finite(gradient)) - state.images
        relaxed = _by_example(phase < _THIRD, state.images)
        radius = self.threat_model.epsilon + jnp.where(relaxed, size, 0)
        current = jnp.clip(state.images + NORMS[self.threat_model.norm].project(stepped, radius), 0, 1)
        projected = self.threat_model.perturb(state.images, current - state.images)
        # A step that began inside the ball is judged by where it began, whose logits are known.
        inside, after = phase > _THIRD, logits_fn(projected)
        judged, seen = where(inside, begin, projected), where(inside, logits, after)
        ahead = jnp.where(inside, -_difference(logits, state.labels, target), -margin(after, state.labels))
        valid = ~(has_nan(gradient) | has_nan(seen))
        judged = self.threat_model.perturb(state.images, judged - state.images)
        return _Moved(current, judged, misclassified(seen, state.labels), ahead, valid)

    def _jump(self, state: RelaxationState, share: jax.Array) -> jax.Array:
        """Into a smaller ball, and to a random point around."""
        radius, norm = self.threat_model.epsilon * (1 - share), NORMS[self.threat_model.norm]
        keys = jax.vmap(jax.random.fold_in)(fold_in_each(state.keys, 2), state.draws)
        inner = jnp.clip(state.images + norm.project(state.current - state.images, radius), 0, 1)
        noise = share * self.threat_model.random_start(keys, state.images)
        return self.threat_model.perturb(state.images, inner + noise - state.images)

    def _next_target(self, state: RelaxationState, over: jax.Array) -> RelaxationState:
        """Where a target is `over`: the next one that is wanted, or the first of another pass."""
        later = state.wanted & (jnp.arange(self.num_targets, dtype=jnp.int32)[None] > state.target[:, None])
        pass_over = over & ~later.any(1)
        restarts = state.restarts + pass_over.astype(jnp.int32)
        following = jnp.where(pass_over, jnp.argmax(state.near, 1), jnp.argmax(later, 1)).astype(jnp.int32)
        return state._replace(
            target=jnp.where(over, following, state.target),
            restarts=restarts,
            wanted=where(pass_over, state.near, state.wanted),
            near=where(pass_over, jnp.zeros_like(state.near), state.near),
            iteration=jnp.where(over, 0, state.iteration),
            finished=state.finished | (pass_over & (~state.near.any(1) | (restarts >= self.num_restarts))),
        )

    def _begin_target(self, state: RelaxationState, which: jax.Array) -> RelaxationState:
        """At a random point of the ball."""
        keys = jax.vmap(jax.random.fold_in)(fold_in_each(state.keys, 1), state.draws)
        first = jnp.clip(state.images + self.threat_model.random_start(keys, state.images), 0, 1)
        return state._replace(current=where(which, first, state.current))


def share_of(iteration: jax.Array) -> jax.Array:
    """s of the step with this number, float32 [N]: what a step and the relaxation are of the radius."""
    halvings = (iteration // _CYCLE).astype(jnp.float32)
    return jnp.maximum(_LARGEST_SHARE * 0.5**halvings, _SMALLEST_SHARE)


def relaxation(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat_model: ThreatModel,
    key: jax.Array,
    num_targets: int = 3,
    num_restarts: int = 5,
) -> AttackResult:
    """Constraint relaxation: the settings are those of `Relaxation`; `num_targets` is below the number of classes.

    Images, labels, key, result, errors and warnings are those of `run_attack`.
    """
    attack = Relaxation(threat_model, num_targets, num_restarts)
    return run_attack(attack, logits_fn, images, labels, key=key)


def _by_example(values: jax.Array, images: jax.Array) -> jax.Array:
    values = values if values.dtype == bool else values.astype(images.dtype)
    return values.reshape(-1, *[1] * (images.ndim - 1))


def _difference(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Of the target over the label, [N]."""
    one_hot = lambda classes: jax.nn.one_hot(classes, logits.shape[1], dtype=logits.dtype)
    return jnp.sum((one_hot(targets) - one_hot(labels)) * logits, axis=1)


def _with(loss: Callable[..., jax.Array], logits: jax.Array, *classes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum of a loss, with the logits."""
    return loss(logits, *classes).sum(), logits


def _noted(found: AttackResult, images: jax.Array, logits: jax.Array, labels: jax.Array) -> AttackResult:
    wrong = misclassified(logits, labels)
    return AttackResult(where(wrong, images, found.adversarial), found.broken | wrong)
