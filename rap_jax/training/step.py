"""One training step as pure functions: attack the batch, take the loss on the adversarial images, update.

Ye et al., 2019, eq. 3 and 8: the objective is the cross-entropy on adversarial images alone (no natural term); the
ADMM penalty, where there is one, is part of the optimizer chain. Without an attack it is natural training.

    prepare    gathers and augments the batch, draws the keys of the attack
    attack     images -> adversarial images: nearly all of the work, and every image by itself
    update     loss gradient, BatchNorm statistics, optimizer, metrics

Differs from the authors' code: (1) the attack sees BatchNorm in evaluation mode: its gradient then belongs to the
network that is evaluated and shipped, and an example's attack does not depend on its neighbours. Theirs uses batch
statistics, available as `attack_batch_norm="batch"`. (2) Only the training pass moves the running statistics; theirs
moves them in every forward pass of the attack as well.

Free adversarial training (Shafahi et al., "Adversarial Training for Free!", 2019, https://arxiv.org/abs/1904.12843,
algorithm 1) has no attack before the update. Every batch is trained on m times in a row. Each update takes one forward
and one backward pass, at the images moved by a perturbation; its gradients with respect to the weights and to the
images move both. The perturbation goes on from update to update and, place by place, from batch to batch. An update
costs what one of natural training costs; so do E epochs, if an epoch is a number of updates (as it is here): they go
through the data E / m times.

Differs from the authors' code: (3) the gradient is that at the perturbed image; theirs passes the clipping to [0, 1]
and is zero where that clips, so a perturbation that points out of the box stays there as long as the batch does, which
matters where many pixels are 0 or 1. (4) With label smoothing both gradients are of the smoothed loss, since there is
one pass, while other attacks here see the labels as they are.

Adversarial weight perturbation (Wu et al., "Adversarial Weight Perturbation Helps Robust Generalization", 2020,
https://arxiv.org/abs/2004.05884, with one step on the weights): an update takes the gradient of the
adversarial batch at weights that are moved uphill first (`perturb_weights`), and the optimizer applies it to the
weights themselves. The batch is attacked at the weights, before they are moved.

Differs from the authors' code (https://github.com/csdongxian/AWP): (5) BatchNorm's statistics, loss, accuracy and
gradient norm are those of the first pass, at the weights that are evaluated and shipped; theirs are of the pass at the
moved weights. (6) Momentum and decay see the weights; theirs step from the moved ones and move back. (7) Zeros do not
move: pruned weights stay out of the function.

Distillation (RSLAD; Zi et al., "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student
Better", ICCV 2021, https://arxiv.org/abs/2108.07969): the ADMM stage and the retrain learn from the dense network that
they began with. Its probabilities T(x) on the clean images take the place of the labels, in the attack, which
maximises KL(T(x) || S(x')), and in the loss, see `distillation_loss`. Labels count in the accuracy alone, so label
smoothing ends with the pretrain stage.

Differs from the authors' code (https://github.com/zibojia/RSLAD): (8) the attack starts as the run's attacks do; theirs
starts at normal noise of deviation 0.001. (9) A divergence is the sum over the classes, as in the paper; theirs is the
mean, so their gradient is that of ours over the number of classes. (10) The adversarial pass alone moves BatchNorm's
statistics; theirs moves them in the clean pass as well.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from rap_jax.attacks import ThreatModel, leaky_backward, pgd_restarts
from rap_jax.attacks.losses import cross_entropy, kl_divergence, smooth_labels
from rap_jax.attacks.pgd import strongest
from rap_jax.attacks.stepwise import keys_of
from rap_jax.config import AttackConfig, TrainConfig
from rap_jax.data.batches import BatchInputs, make_batch
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.state import StepKeys, TrainState, move_average

_UPDATE = 2**31 - 1  # folded into the key of the first image, for what the optimizer draws; no attack folds it


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


def perturb_weights(params: chex.ArrayTree, gradients: chex.ArrayTree, gamma: float) -> chex.ArrayTree:
    """The weights moved uphill, each kernel by `gamma` times its own norm: w + gamma ||w|| g / ||g||.

    Wu et al., 2020, with one step. Weights that are exactly zero do not move, and their gradient does not
    count: a pruned network stays itself. Biases and BatchNorm do not move, as in the authors' code.

    Args:
      params: arrays [*shape]; kernels are those of 2 axes or more.
      gradients: of the loss, like the params. A kernel whose gradient is zero does not move.
      gamma: 0 or more.
    """

    def perturb_one(weight: jax.Array, gradient: jax.Array) -> jax.Array:
        if weight.ndim < 2:
            return weight
        uphill = jnp.where(weight != 0, gradient, 0)
        size, length = (jnp.sqrt(jnp.sum(jnp.square(leaf))) for leaf in (weight, uphill))
        return weight + jnp.where(length > 0, gamma * size / length, 0) * uphill

    return jax.tree.map(perturb_one, params, gradients)


def distillation_loss(adversarial: jax.Array, clean: jax.Array, probabilities: jax.Array) -> jax.Array:
    """5/6 KL(T(x) || S(x')) + 1/6 KL(T(x) || S(x)) at temperature 1, the mean over the images; 0 where all agree.

    Args:
      adversarial: the student's logits on adversarial images x', float [N, K].
      clean: its logits on clean images x, float [N, K].
      probabilities: T(x), the teacher's on clean images, float [N, K].
    """
    on_adversarial, on_clean = (kl_divergence(logits, probabilities).mean() for logits in (adversarial, clean))
    return (5 * on_adversarial + on_clean) / 6


class StepMetrics(NamedTuple):
    """Float32 scalars of one step; those of the batch are taken before the update."""

    # Mean cross-entropy on the adversarial batch (on the clean one without an attack), or `distillation_loss`.
    loss: jax.Array
    accuracy: jax.Array  # share of the adversarial batch that is classified correctly
    gradient_norm: jax.Array  # of the loss gradient, without penalty and decay
    weight_norm: jax.Array  # of all weights, after the update
    learning_rate: jax.Array
    epsilon: jax.Array  # radius of the attack


class AttackInputs(NamedTuple):
    """A clean batch, and the keys and the scale of its attack."""

    images: jax.Array  # float32 [N, H, W, C] in [0, 1]
    targets: jax.Array  # labels int32 [N], or mixed, float32 [N, K]
    keys: jax.Array  # of each image's random start [N], so that no start depends on how the batch is split
    scale: jax.Array  # share of the attack's radius and step size, in (0, 1]
    teacher: chex.ArrayTree = ()  # its probabilities on the clean images, float32 [N, K]; () without a teacher
    clean: chex.ArrayTree = ()  # the clean images, where `images` are adversarial and there is a teacher; else ()

    @property
    def attack_targets(self) -> jax.Array:
        """What the attack moves away from: the teacher's probabilities, where there is a teacher."""
        return self.teacher if isinstance(self.teacher, jax.Array) else self.targets

    @property
    def labels(self) -> jax.Array:
        """The class of the largest share, int32 [N]."""
        return self.targets if self.targets.ndim == 1 else self.targets.argmax(-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class StepFunctions:
    """The three functions of a training step, all of them pure, and the step as one function."""

    model: Model
    tx: optax.GradientTransformationExtraArgs
    config: TrainConfig
    plan: StagePlan
    gather: Callable[[chex.ArrayTree], chex.ArrayTree] = lambda tree: tree  # completes sharded params
    teacher: Model | None = None  # of a distillation; its weights are in the state

    def prepare(
        self, step: jax.Array, inputs: BatchInputs, keys: StepKeys, teacher: chex.ArrayTree = ()
    ) -> AttackInputs:
        """The clean batch of a step, [N, ...], and what its attack needs; `teacher`: its `Weights`, if there is one."""
        attack_key = jax.random.fold_in(keys.attack, step)
        # By the number of the batch: every update on it sees the same crops and mixtures.
        batch_key = jax.random.fold_in(keys.batch, step // self.config.updates_per_batch)
        images, targets = make_batch(
            batch_key,
            inputs,
            self.config,
            num_classes=self.model.num_classes,
            image_shape=self.model.input_shape,
        )
        attack_keys = keys_of(attack_key, jnp.arange(len(images), dtype=jnp.int32))
        batch = AttackInputs(images, targets, attack_keys, self.plan.epsilon_scale(step))
        if self.teacher is None:
            return batch
        return batch._replace(teacher=jax.nn.softmax(self.teacher.logits(self.gather(teacher), images)))

    def attack(self, weights: Weights, inputs: AttackInputs) -> jax.Array:
        """Adversarial images of the batch; clean ones in natural training, and in free training."""
        attack = self.config.attack
        if attack is None or not self.config.attacks_first:
            return inputs.images
        batch_norm = self.config.attack_batch_norm == "batch"
        return _attack_batch(self.model, attack, weights, inputs, self.config.train_leaky_slope, train=batch_norm)

    def attacked(self, batch: AttackInputs, images: jax.Array) -> AttackInputs:
        """The inputs of the update: adversarial images, and beside them the clean ones if the loss is of both."""
        return batch._replace(images=images, clean=() if self.teacher is None else batch.images)

    def update(self, state: TrainState, inputs: AttackInputs, dual_step: jax.Array) -> tuple[TrainState, StepMetrics]:
        """The state after a gradient step on the images of the inputs; in free training they are perturbed here."""
        attack, scale, perturbation = self.config.attack, inputs.scale, state.perturbation
        free = self.config.free_replays > 0
        images = perturb(inputs.images, perturbation) if free else inputs.images
        loss_fn = _loss(self.model, state.batch_stats, inputs, self.config.label_smoothing)
        # Free training is free because the pass that gives the weight gradient gives the image gradient as well.
        gradients_fn = jax.value_and_grad(loss_fn, (0, 1) if free else (0,), has_aux=True)
        gathered = self.gather(state.params)
        (loss, (accuracy, batch_stats)), (first_gradients, *rising) = gradients_fn(gathered, images)
        gradients = first_gradients
        if self.config.awp_gamma > 0:
            _, (gradients,) = gradients_fn(perturb_weights(gathered, gradients, self.config.awp_gamma), images)
        if attack is not None and free:
            perturbation = move_perturbation(perturbation, rising[0], attack, scale)
        # optax multiplies its counts with fractions, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            key = jax.random.fold_in(inputs.keys[0], _UPDATE)
            updates, opt_state = self.tx.update(gradients, state.opt_state, state.params, dual_step=dual_step, key=key)
            learning_rate = jnp.asarray(self.plan.learning_rate(state.step), jnp.float32)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(
            loss=loss,
            accuracy=accuracy,
            gradient_norm=optax.tree.norm(first_gradients),
            weight_norm=optax.tree.norm(params),
            learning_rate=learning_rate,
            epsilon=scale * (attack.epsilon if attack is not None else 0.0),
        )
        step = state.step + 1
        average = move_average(state.average, Weights(params, batch_stats), self.config.ema_decay, step)
        return TrainState(step, params, batch_stats, opt_state, perturbation, average, state.teacher), metrics

    def step(
        self, state: TrainState, inputs: BatchInputs, keys: StepKeys, dual_step: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        """The whole step."""
        clean = self.prepare(state.step, inputs, keys, state.teacher)
        images = self.attack(Weights(self.gather(state.params), state.batch_stats), clean)
        return self.update(state, self.attacked(clean, images), dual_step)


def _attack_batch(
    model: Model, attack: AttackConfig, weights: Weights, inputs: AttackInputs, slope: float, *, train: bool
) -> jax.Array:
    """Adversarial images at the inputs' share of the attack's radius; BatchNorm in evaluation mode unless `train`."""

    def loss_fn(x: jax.Array) -> jax.Array:
        return cross_entropy(model.apply(*weights, x, train)[0], inputs.attack_targets)

    restarts = pgd_restarts(
        leaky_backward(loss_fn, slope),
        inputs.images,
        threat_model=ThreatModel(attack.norm, inputs.scale * attack.epsilon),
        key=inputs.keys,
        step_size=inputs.scale * jnp.asarray(attack.step_sizes, jnp.float32),
        num_steps=attack.num_steps,
        num_restarts=attack.num_restarts,
        random_start=attack.random_start,
    )
    return strongest(loss_fn, restarts.adversarial)


def _loss(
    model: Model, batch_stats: chex.ArrayTree, inputs: AttackInputs, label_smoothing: float
) -> Callable[[chex.ArrayTree, jax.Array], tuple[jax.Array, tuple[jax.Array, chex.ArrayTree]]]:
    """(params, images) -> mean loss under targets or teacher, and (accuracy, new BatchNorm statistics)."""
    targets = smooth_labels(inputs.targets, label_smoothing, model.num_classes)

    def loss_fn(params: chex.ArrayTree, images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, chex.ArrayTree]]:
        logits, new_stats = model.apply(params, batch_stats, images, True)
        accuracy = jnp.mean(logits.argmax(-1).astype(jnp.int32) == inputs.labels, dtype=jnp.float32)
        if not isinstance(inputs.teacher, jax.Array):
            return cross_entropy(logits, targets).mean(), (accuracy, new_stats)
        clean_logits, _ = model.apply(params, batch_stats, inputs.clean, True)
        return distillation_loss(logits, clean_logits, inputs.teacher), (accuracy, new_stats)

    return loss_fn
