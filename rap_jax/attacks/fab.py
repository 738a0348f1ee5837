"""FAB: the nearest adversarial image, found by walking along the linearised decision boundary.

Reference: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", 2020,
https://arxiv.org/abs/1907.02044, Algorithm 1; the third component of AutoAttack (https://arxiv.org/abs/2003.01690).

A step takes the boundary between the right class and another as a hyperplane and goes a little beyond the nearest point
of it inside [0, 1] (`hyperplane`), drawn towards the clean image. If that point is misclassified, it counts if it is
the nearest so far, and the next step begins 10% nearer to the image. The distance is minimised; the radius only decides
in the end what is near enough. FAB goes for the class whose hyperplane is nearest and takes a gradient for every class;
FAB-T goes for one class and takes one gradient.

Where z are the logits, the boundary to the class t is z_t - z_label = 0. At an image x its hyperplane is where the
linear function of value `height` = z_t - z_label and gradient `normal`, both at x, is 0.

Differs from the authors' code (fra31/auto-attack):
(1) An image that is misclassified already is broken, at distance 0; theirs leaves it out.
(2) The projection on the hyperplane is Newton's method instead of sort and bisection, with the same result.
(3) It is given w.x - b, which is the difference of the logits, and not b, so the rounding of w.x has no part in it.
(4) Gradients of differences of logits are taken instead of differences of gradients.
(5) Each example has its own key. Restart 0 of every target draws nothing, here as there, and goes the same way.

What stays: a check of each point costs a forward pass, and its gradient another. What is misclassified is drawn back in
between, so one pass for both would go another way.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rap_jax.attacks.checks import LogitsFn, check_count
from rap_jax.attacks.hyperplane import ONTO_HYPERPLANE
from rap_jax.attacks.norms import ThreatModel, finite, has_nan
from rap_jax.attacks.stepwise import AttackResult, check_settings, misclassified, rank_targets, run_attack, where

# Smallest divisor of a distance to a hyperplane.
_TINY = 1e-12


def boundary_to(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The boundary to the target classes, made linear at the images, by one forward and one backward pass.

    Returns:
      height [N], negative where the label is ahead, and normal [N, ...]; both are zero where target and label are one.
    """
    logits, pull_back = jax.vjp(logits_fn, images)
    one_hot = lambda classes: jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    difference = one_hot(targets) - one_hot(labels)
    return jnp.sum(difference * logits, axis=-1), pull_back(difference)[0]


def nearest_boundary(
    logits_fn: LogitsFn, images: jax.Array, labels: jax.Array, norm: str
) -> tuple[jax.Array, jax.Array]:
    """The boundary that is nearest as long as it is taken as linear and the box is left out.

    The classes are gone through one after the other: side by side, by `vmap`, they take K times the memory, and on a
    CPU 1.5 to 3 times as long. To share one forward pass among them gained nothing there.

    Arguments and result as in `boundary_to`; `norm` is the one of the distance, `linf` or `l2`.
    """
    classes = jnp.arange(jax.eval_shape(logits_fn, images).shape[-1], dtype=labels.dtype)
    to_class = lambda k: boundary_to(logits_fn, images, labels, jnp.full_like(labels, k))
    heights, normals = lax.map(to_class, classes)
    flat = jax.vmap(finite)(normals).reshape(*heights.shape, -1)
    # |height| over the dual norm of the normal: L1 for L-infinity, L2 for L2.
    dual = jnp.sum(jnp.abs(flat), axis=-1) if norm == "linf" else jnp.sqrt(jnp.sum(flat * flat, axis=-1))
    distances = jnp.abs(heights) / (dual + _TINY)
    left_out = (classes[:, None] == labels[None]) | jnp.isnan(distances)  # argmin takes NaN for the least
    distances = jnp.where(left_out, jnp.inf, distances)
    nearest = jnp.argmin(distances, axis=0)
    choose = jax.vmap(lambda nearest, of_class: of_class[nearest], in_axes=(0, 1))
    return choose(nearest, heights), choose(nearest, normals)


# Shortest perturbation in the ratio of two of them, so that 0 / 0 does not arise.
_SHORTEST = 1e-8


class FabState(NamedTuple):
    """A batch under attack."""

    # Clean, [N, ...], and int [N].
    images: jax.Array
    labels: jax.Array
    targets: jax.Array  # class to reach, [N]; the labels, not read, if FAB is to choose it
    current: jax.Array  # where the next step begins, in [0, 1], [N, ...]
    # The nearest misclassified image so far, [N, ...], the clean one before there is one; its distance, [N], infinite
    # before there is one; and whether that is the radius or less, bool [N].
    adversarial: jax.Array
    distance: jax.Array
    broken: jax.Array
    valid: jax.Array  # see `AttackState`


@dataclasses.dataclass(frozen=True)
class Fab:
    """Settings of FAB or FAB-T, a `StepwiseAttack`.

    Its starts are, for each target, all restarts. The first of each begins at the image and draws nothing; the others
    begin at a random point at half the radius.

    Raises:
      ValueError: an impossible number; in `start`: more targets than there are.
    """

    threat_model: ThreatModel  # paths from the image itself do not depend on the radius
    num_steps: int = 100  # steps from each start
    # 0 for FAB; otherwise the classes to reach in turn, those of rank 2 to `num_targets` + 1 among the logits of the
    # clean image. At most the number of classes less 1.
    num_targets: int = 0
    num_restarts: int = 1  # for each target; the first that breaks an example counts
    # Largest weight of the step from the clean image against the one from the current point, in [0, 1].
    alpha_max: float = 0.1
    overshoot: float = 1.05  # how far to go, as a share of the way to the hyperplane (eta)
    backward: float = 0.9  # where to go on after a success, as a share of the way from the clean image (beta)

    def __post_init__(self) -> None:
        check_settings(self, num_targets=check_count("num_targets", self.num_targets, 0, "0 targets"))

    @property
    def num_starts(self) -> int:
        """Restarts, for each target."""
        return self.num_restarts * max(1, self.num_targets)

    def start(
        self, logits_fn: LogitsFn, keys: jax.Array, images: jax.Array, labels: jax.Array, starts: jax.Array
    ) -> FabState:
        """The state before the first step; see `StepwiseAttack`. Costs a forward pass."""
        logits = logits_fn(images)
        wrong = misclassified(logits, labels)
        distance = jnp.where(wrong, 0.0, jnp.inf).astype(images.dtype)
        numbers = starts // self.num_restarts
        targets = rank_targets(logits, numbers, self.num_targets).astype(labels.dtype) if self.num_targets else labels
        first = images
        if self.num_restarts > 1:
            perturbation = self.threat_model.epsilon / 2 * self.threat_model.random_direction(keys, images)
            first = where(starts % self.num_restarts > 0, jnp.clip(images + perturbation, 0, 1), images)
        return FabState(images, labels, targets, first, images, distance, wrong, ~has_nan(logits))

    def advance(self, logits_fn: LogitsFn, state: FabState, num_steps: int) -> FabState:
        """The state after `num_steps` further steps. Each costs a forward pass, and one with its gradient."""
        step = lambda _, state: _check(self, logits_fn, *_move(self, logits_fn, state))
        return lax.fori_loop(0, num_steps, step, state)


def fab(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    *,
    threat_model: ThreatModel,
    key: jax.Array,
    num_steps: int = 100,
    num_restarts: int = 1,
) -> AttackResult:
    """FAB, which takes the gradients of all classes at each step: the settings are those of `Fab`.

    Images, labels, key, result, errors and warnings are those of `run_attack`.
    """
    attack = Fab(threat_model, num_steps, num_restarts=num_restarts)
    return run_attack(attack, logits_fn, images, labels, key=key)


def fab_targeted(
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
    """FAB-T, towards the `num_targets` most likely wrong classes, one after the other.

    The settings are those of `Fab`; `num_targets` is below the number of classes. Images, labels, key, result, errors
    and warnings are those of `run_attack`.
    """
    attack = Fab(threat_model, num_steps, num_targets, num_restarts)
    return run_attack(attack, logits_fn, images, labels, key=key)


def _move(attack: Fab, logits_fn: LogitsFn, state: FabState) -> tuple[FabState, jax.Array]:
    """The next point: beyond the hyperplane, between the steps there from the current point and from the image.

    The state comes back with it, as it is but for `valid`.
    """
    if attack.num_targets:
        height, normal = boundary_to(logits_fn, state.current, state.labels, state.targets)
    else:
        height, normal = nearest_boundary(logits_fn, state.current, state.labels, attack.threat_model.norm)
    valid = state.valid & ~(has_nan(normal) | jnp.isnan(height))
    normal, height = finite(normal), jnp.where(jnp.isnan(height), 0.0, height)
    # The clean image and the current point have the same hyperplane, so their heights differ by w.(image - current).
    height_at_image = height + _flat(normal * (state.images - state.current)).sum(axis=1)
    step, length = _step_onto(attack.threat_model, state.current, normal, height)
    step_at_image, length_at_image = _step_onto(attack.threat_model, state.images, normal, height_at_image)
    alpha = jnp.minimum(length / (length + length_at_image), attack.alpha_max).reshape(-1, *[1] * (step.ndim - 1))
    beyond = state.current + attack.overshoot * step
    beyond_at_image = state.images + attack.overshoot * step_at_image
    return state._replace(valid=valid), jnp.clip((1 - alpha) * beyond + alpha * beyond_at_image, 0, 1)


def _step_onto(
    threat_model: ThreatModel, points: jax.Array, normal: jax.Array, height: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The least step [N, ...] onto the hyperplane, and its length [N]."""
    step = ONTO_HYPERPLANE[threat_model.norm](_flat(points), _flat(normal), height)
    return step.reshape(points.shape), jnp.maximum(threat_model.size(step), _SHORTEST)


def _check(attack: Fab, logits_fn: LogitsFn, state: FabState, moved: jax.Array) -> FabState:
    """Keeps the new point if it is misclassified and nearer than what there is; draws it back for the next step."""
    logits = logits_fn(moved)
    wrong = misclassified(logits, state.labels)
    distance = attack.threat_model.size(moved - state.images)
    closer = wrong & (distance < state.distance)
    distance = jnp.where(closer, distance, state.distance)
    drawn_back = state.images + attack.backward * (moved - state.images)
    return state._replace(
        current=where(wrong, drawn_back, moved),
        adversarial=where(closer, moved, state.adversarial),
        distance=distance,
        broken=distance <= attack.threat_model.epsilon,
        valid=state.valid & ~has_nan(logits),
    )


def _flat(images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1)
