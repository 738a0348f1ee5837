"""What one training step computes: attack the batch, take the loss on what the attack found, update.

Ye et al., 2019, eq. 3 and 8: the objective is the cross-entropy on adversarial images alone (no natural term); the
ADMM penalty, where there is one, is part of the optimizer chain. Without an attack it is natural training.

    prepare    gathers and augments the batch, draws the keys of the attack
    attack     images -> adversarial images: nearly all of the work, and every image by itself
    update     loss gradient, BatchNorm statistics, optimizer, metrics

In free training there is no attack before the update: it moves the perturbation of the images as well.

Differs from the authors' code: (1) the attack sees BatchNorm in evaluation mode: its gradient then belongs to the
network that is evaluated and shipped, and an example's attack does not depend on its neighbours. Theirs uses batch
statistics, available as `attack_batch_norm="batch"`. (2) Only the training pass moves the running statistics; theirs
moves them in every forward pass of the attack as well.

Free adversarial training: the pass that trains the weights also moves the perturbation of the images.

Every batch is trained on m times in a row. Each update takes one forward and one backward pass, at the images moved by
a perturbation, and the gradients of that pass with respect to the weights and to the images move both. The perturbation
goes on from update to update and, place by place, from batch to batch. An update costs what one of natural training
costs; so do E epochs, if an epoch is a number of updates (as it is here): they go through the data E / m times.

Reference: Shafahi et al., "Adversarial Training for Free!", 2019, https://arxiv.org/abs/1904.12843, algorithm 1.

Differs from the authors' code: (1) the gradient is that at the perturbed image; theirs passes the clipping to [0, 1]
and is zero where that clips, so a perturbation that points out of the box stays there as long as the batch does, which
matters where many pixels are 0 or 1. (2) With label smoothing both gradients are of the smoothed loss, since there is
one pass, while other attacks here see the labels as they are.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax._runtime.mesh import DeviceSplit
from rap_jax.attacks import ThreatModel, pgd_restarts
from rap_jax.attacks.losses import cross_entropy, smooth_labels
from rap_jax.attacks.pgd import strongest
from rap_jax.attacks.stepwise import keys_of
from rap_jax.config import AttackConfig, TrainConfig
from rap_jax.data.batches import Batch, make_batch
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.training.state import TrainState


def first_perturbation(config: TrainConfig, shape: tuple[int, ...]) -> chex.ArrayTree:
    """What a stage begins with: zeros of the `shape` of a batch, [N, H, W, C]; () if its training is not free."""
    return jnp.zeros(shape, jnp.float32) if config.free_replays else ()


def perturb(images: jax.Array, perturbation: jax.Array) -> jax.Array:
    """The images [N, ...] moved by the perturbation, same shape, inside [0, 1]."""
    return jnp.clip(images + perturbation, 0.0, 1.0)


def move_perturbation(
    perturbation: jax.Array, gradient: jax.Array, attack: AttackConfig, scale: jax.Array | float = 1.0
) -> jax.Array:
    """One step uphill, then back into the ball.

    Args:
      perturbation: [N, ...].
      gradient: of the loss with respect to the perturbed images, same shape; its length does not matter.
      attack: norm, radius and step size.
      scale: share of radius and step size in force, in (0, 1].

    Returns:
      The perturbation for the next update, of norm scale * epsilon at most.
    """
    threat_model = ThreatModel(attack.norm, scale * attack.epsilon)
    return threat_model.project(perturbation + scale * attack.step_size * threat_model.steepest(gradient))


class StepMetrics(NamedTuple):
    """Scalars of one step.

    Attributes:
      loss: mean cross-entropy on the adversarial batch (on the clean one without an attack), before the update.
      accuracy: share of the adversarial batch that is classified correctly.
      gradient_norm: of the loss gradient, without penalty and decay.
      weight_norm: of all weights, after the update.
      learning_rate, epsilon: as used in this step.
    """

    loss: jax.Array
    accuracy: jax.Array
    gradient_norm: jax.Array
    weight_norm: jax.Array
    learning_rate: jax.Array
    epsilon: jax.Array


class StepKeys(NamedTuple):
    """Keys of a stage, from which each step folds its own. Attributes: attack; batch: augmentation and mixup."""

    attack: jax.Array
    batch: jax.Array


class Task(NamedTuple):
    """What an attack works on.

    Attributes:
      batch: clean, [N, ...].
      keys: one for each image's random start [N], so that no start depends on how the batch is split.
      scale: share of the attack's radius and step size, in (0, 1].
    """

    batch: Batch
    keys: jax.Array
    scale: jax.Array

    def with_images(self, images: jax.Array) -> "Task":
        """The same with other images in the batch."""
        return self._replace(batch=self.batch._replace(images=images))


@dataclasses.dataclass(frozen=True)
class StepParts:
    """The three parts of a training step, pure functions, and the step that they make.

    Attributes:
      ramp_steps: steps over which the attack's radius and step size grow linearly to their full size.
      gather: makes params whole that lie in pieces, for the passes through the network.
    """

    model: Model
    tx: optax.GradientTransformationExtraArgs
    config: TrainConfig
    learning_rate: optax.Schedule
    ramp_steps: int = 0
    gather: Callable[[chex.ArrayTree], chex.ArrayTree] = lambda tree: tree

    def prepare(self, step: jax.Array, split: DeviceSplit, indices: jax.Array | None, keys: StepKeys) -> Task:
        """The batch of the examples [N] that `indices` names, all of the split for None, and what an attack needs."""
        attack_key = jax.random.fold_in(keys.attack, step)
        # By the number of the batch: every update on it sees the same crops and mixtures.
        batch_key = jax.random.fold_in(keys.batch, step // self.config.updates_per_batch)
        batch = make_batch(batch_key, split, indices, self.config, num_classes=self.model.num_classes)
        attack_keys = keys_of(attack_key, jnp.arange(len(batch.images), dtype=jnp.int32))
        ramp = (step + 1).astype(jnp.float32) / (self.ramp_steps or 1)
        scale = jnp.minimum(1.0, ramp) if self.ramp_steps else jnp.ones((), jnp.float32)
        return Task(batch, attack_keys, scale)

    def attack(self, weights: Weights, task: Task) -> jax.Array:
        """Adversarial images of the task's batch; clean ones in natural training, and in free training."""
        attack = self.config.attack
        if attack is None or not self.config.attacks_first:
            return task.batch.images
        batch_norm = self.config.attack_batch_norm == "batch"
        return _attack_batch(self.model, attack, weights, task, train=batch_norm)

    def update(self, state: TrainState, task: Task, dual_step: jax.Array) -> tuple[TrainState, StepMetrics]:
        """The state after a gradient step on the images of the task; in free training they are perturbed here."""
        attack, scale, perturbation = self.config.attack, task.scale, state.perturbation
        free = self.config.free_replays > 0
        images = perturb(task.batch.images, perturbation) if free else task.batch.images
        loss_fn = _loss(self.model, state.batch_stats, task.batch, self.config.label_smoothing)
        # Free training is free because the pass that gives the weight gradient gives the image gradient as well.
        gradients_fn = jax.value_and_grad(loss_fn, (0, 1) if free else (0,), has_aux=True)
        (loss, (accuracy, batch_stats)), (gradients, *rising) = gradients_fn(self.gather(state.params), images)
        if attack is not None and free:
            perturbation = move_perturbation(perturbation, rising[0], attack, scale)
        # optax multiplies its counts with fractions, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = self.tx.update(gradients, state.opt_state, state.params, dual_step=dual_step)
            learning_rate = jnp.asarray(self.learning_rate(state.step), jnp.float32)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(
            loss=loss,
            accuracy=accuracy,
            gradient_norm=optax.tree.norm(gradients),
            weight_norm=optax.tree.norm(params),
            learning_rate=learning_rate,
            epsilon=scale * (attack.epsilon if attack is not None else 0.0),
        )
        return TrainState(state.step + 1, params, batch_stats, opt_state, perturbation), metrics

    def step(
        self, state: TrainState, split: DeviceSplit, indices: jax.Array | None, keys: StepKeys, dual_step: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        """The whole step."""
        task = self.prepare(state.step, split, indices, keys)
        images = self.attack(Weights(self.gather(state.params), state.batch_stats), task)
        return self.update(state, task.with_images(images), dual_step)


def _attack_batch(model: Model, attack: AttackConfig, weights: Weights, task: Task, *, train: bool) -> jax.Array:
    """Adversarial images at the task's share of the attack's radius; BatchNorm in evaluation mode unless `train`."""

    def loss_fn(x: jax.Array) -> jax.Array:
        return cross_entropy(model.apply(*weights, x, train)[0], task.batch.targets)

    restarts = pgd_restarts(
        loss_fn,
        task.batch.images,
        threat_model=ThreatModel(attack.norm, task.scale * attack.epsilon),
        key=task.keys,
        step_size=task.scale * attack.step_size,
        num_steps=attack.num_steps,
        num_restarts=attack.num_restarts,
        random_start=attack.random_start,
    )
    return strongest(loss_fn, restarts.adversarial)


def _loss(
    model: Model, batch_stats: chex.ArrayTree, batch: Batch, label_smoothing: float
) -> Callable[[chex.ArrayTree, jax.Array], tuple[jax.Array, tuple[jax.Array, chex.ArrayTree]]]:
    """(params, images) -> mean loss under the batch's targets, and (accuracy, new BatchNorm statistics)."""
    targets = smooth_labels(batch.targets, label_smoothing, model.num_classes)

    def loss_fn(params: chex.ArrayTree, images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, chex.ArrayTree]]:
        logits, new_stats = model.apply(params, batch_stats, images, True)
        accuracy = jnp.mean(logits.argmax(-1).astype(jnp.int32) == batch.labels, dtype=jnp.float32)
        return cross_entropy(logits, targets).mean(), (accuracy, new_stats)

    return loss_fn
