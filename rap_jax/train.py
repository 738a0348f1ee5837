"""One training step: attack the batch, take the loss on what the attack found, update.

Ye et al., 2019, eq. 3 and 8: the objective is the cross-entropy on adversarial images alone (no natural term); the
ADMM penalty, where there is one, is part of the optimizer chain. Without an attack it is natural training.

Differs from the authors' code: (1) the attack sees BatchNorm in evaluation mode: its gradient then belongs to the
network that is evaluated and shipped, and an example's attack does not depend on its neighbours. Theirs uses batch
statistics, available as `attack_batch_norm="batch"`. (2) Only the training pass moves the running statistics; theirs
moves them in every forward pass of the attack as well.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rap_jax.attacks import pgd
from rap_jax.batch import Batch, make_batch
from rap_jax.config import AttackConfig, TrainConfig
from rap_jax.losses import cross_entropy, smooth_labels
from rap_jax.models import Model
from rap_jax.state import DeviceSplit, TrainState, replicated, split_over_data


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


TrainStep = Callable[[TrainState, DeviceSplit, np.ndarray, StepKeys, bool], tuple[TrainState, StepMetrics]]


def make_train_step(
    model: Model,
    tx: optax.GradientTransformationExtraArgs,
    config: TrainConfig,
    learning_rate: optax.Schedule,
    mesh: Mesh,
    *,
    ramp_steps: int = 0,
) -> TrainStep:
    """Builds `step(state, split, indices, keys, dual_step) -> (state, metrics)`, compiled once per stage.

    The state is donated: it lives on in the returned one. Its leaves are replicated over the mesh, the batch is
    split over it, and the loss is a mean over the global batch, so XLA sums gradients over the devices by itself.

    Args:
      ramp_steps: steps over which the attack's radius and step size grow linearly to their full size.
    """

    def train_step(
        state: TrainState, split: DeviceSplit, indices: jax.Array, keys: StepKeys, dual_step: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        attack_key, batch_key = (jax.random.fold_in(key, state.step) for key in keys)
        batch = make_batch(batch_key, split, indices, config, num_classes=model.num_classes)
        scale = jnp.minimum(1.0, (state.step + 1) / ramp_steps) if ramp_steps else jnp.ones(())
        if config.attack is not None:
            batch_norm = config.attack_batch_norm == "batch"
            images = _attack_batch(model, config.attack, state, batch, attack_key, scale, train=batch_norm)
            batch = batch._replace(images=images)
        loss_fn = _loss(model, state.batch_stats, batch, config.label_smoothing)
        (loss, (accuracy, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params, dual_step=dual_step)
        params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(
            loss=loss,
            accuracy=accuracy,
            gradient_norm=optax.tree.norm(gradients),
            weight_norm=optax.tree.norm(params),
            learning_rate=jnp.asarray(learning_rate(state.step)),
            epsilon=scale * (config.attack.epsilon if config.attack is not None else 0.0),
        )
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    whole = replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(whole, whole, split_over_data(mesh), whole, whole),
        out_shardings=whole,
        donate_argnums=0,
    )


def _attack_batch(
    model: Model,
    attack: AttackConfig,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    scale: jax.Array,
    *,
    train: bool,
) -> jax.Array:
    """Adversarial images at `scale` times the attack's radius; BatchNorm in evaluation mode unless `train`."""

    def loss_fn(x: jax.Array) -> jax.Array:
        return cross_entropy(model.apply(state.params, state.batch_stats, x, train)[0], batch.targets)

    settings = dataclasses.asdict(attack) | {
        "epsilon": scale * attack.epsilon,
        "step_size": scale * attack.step_size,
    }
    return pgd(key, loss_fn, batch.images, **settings)


def _loss(
    model: Model, batch_stats: chex.ArrayTree, batch: Batch, label_smoothing: float
) -> Callable[[chex.ArrayTree], tuple[jax.Array, tuple[jax.Array, chex.ArrayTree]]]:
    targets = smooth_labels(batch.targets, label_smoothing, model.num_classes)

    def loss_fn(params: chex.ArrayTree) -> tuple[jax.Array, tuple[jax.Array, chex.ArrayTree]]:
        logits, new_stats = model.apply(params, batch_stats, batch.images, True)
        accuracy = jnp.mean(logits.argmax(-1) == batch.labels)
        return cross_entropy(logits, targets).mean(), (accuracy, new_stats)

    return loss_fn
