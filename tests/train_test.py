"""One training step against the same step written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rap_jax.config import AttackConfig
from rap_jax.models import Model
from rap_jax.state import DeviceSplit, TrainState, make_mesh, put_split
from rap_jax.train import StepMetrics, make_train_step

IMAGES = np.random.default_rng(0).integers(40, 216, (24, 2, 2, 1), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, 24).astype(np.int32)
INDICES = np.array([3, 1, 4, 15, 9, 2, 6, 5], np.int32)
PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (4, 3))}
ATTACK = AttackConfig(epsilon=0.1, step_size=0.1, num_steps=1, random_start=False)
LEARNING_RATE = 0.5


def linear_apply(params: dict, batch_stats: dict, images: jax.Array, train: bool) -> tuple[jax.Array, dict]:
    """A linear model whose "statistics" count training passes, and whose logits show which mode is on."""
    logits = images.reshape(len(images), -1) @ params["kernel"]
    if train:
        return logits, {"passes": batch_stats["passes"] + 1}
    return -logits, batch_stats  # in evaluation mode the loss rises the other way


LINEAR = Model(lambda key: ({}, {}), linear_apply, (2, 2, 1), 3, "dense")


def one_step(num_devices: int, ramp_steps: int = 0, step: int = 0) -> tuple[TrainState, StepMetrics]:
    mesh = make_mesh(jax.devices()[:num_devices])
    tx = optax.with_extra_args_support(optax.sgd(LEARNING_RATE))
    learning_rate = lambda step: LEARNING_RATE + step
    train_step = make_train_step(LINEAR, tx, ATTACK, learning_rate, mesh, ramp_steps=ramp_steps)
    params = jax.tree.map(jnp.copy, PARAMS)
    state = TrainState(jnp.int32(step), params, {"passes": jnp.int32(7)}, tx.init(params))
    split: DeviceSplit = put_split(IMAGES, LABELS, mesh)
    return train_step(state, split, INDICES, jax.random.key(1), False)


def by_hand(scale: float) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Loss, accuracy and gradient on the attacked batch, and the weights after the step, in NumPy."""
    kernel = np.asarray(PARAMS["kernel"], np.float64)
    images, labels = IMAGES[INDICES].reshape(8, 4) / 255, LABELS[INDICES]

    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    # The attack sees evaluation mode, whose logits are -x W.
    rising = (softmax(-images @ kernel) - np.eye(3)[labels]) @ -kernel.T
    attacked = images + scale * 0.1 * np.sign(rising)
    logits = attacked @ kernel
    loss = -np.log(softmax(logits)[np.arange(8), labels]).mean()
    gradient = attacked.T @ (softmax(logits) - np.eye(3)[labels]) / 8
    return loss, (logits.argmax(1) == labels).mean(), gradient, kernel - LEARNING_RATE * gradient


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("ramp_steps,step,scale", [(0, 0, 1.0), (4, 0, 0.25), (4, 2, 0.75), (4, 9, 1.0)])
def test_step_equals_numpy(num_devices: int, ramp_steps: int, step: int, scale: float) -> None:
    state, metrics = one_step(num_devices, ramp_steps, step)
    loss, accuracy, gradient, kernel = by_hand(scale)
    np.testing.assert_allclose(state.params["kernel"], kernel, atol=1e-5)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    assert float(metrics.accuracy) == accuracy
    np.testing.assert_allclose(metrics.gradient_norm, np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics.weight_norm, np.linalg.norm(kernel), rtol=1e-5)
    assert float(metrics.epsilon) == pytest.approx(0.1 * scale)
    assert float(metrics.learning_rate) == LEARNING_RATE + step
    assert int(state.step) == step + 1
    assert int(state.batch_stats["passes"]) == 8  # the attack has not moved them, the one training pass has
