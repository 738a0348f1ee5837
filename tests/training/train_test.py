"""One training step, as one program and as several, against the same step written out by hand."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rap_jax._runtime.mesh import make_mesh, replicated
from rap_jax.attacks import ThreatModel, leaky_backward, pgd_restarts
from rap_jax.attacks.losses import cross_entropy
from rap_jax.config import AttackConfig, AugmentConfig, TrainConfig
from rap_jax.data.batches import BatchInputs
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.sharded_step import step_as_program, step_in_programs
from rap_jax.training.state import StepKeys, TrainState
from rap_jax.training.step import AttackInputs, StepFunctions, StepMetrics

pytestmark = pytest.mark.usefixtures("optimised")

IMAGES = np.random.default_rng(0).integers(40, 216, (24, 2, 2, 1), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, 24).astype(np.int32)
INDICES = np.array([3, 1, 4, 15, 9, 2, 6, 5], np.int32)
PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (4, 3))}
ATTACK = AttackConfig(epsilon=0.1, step_size=0.1, num_steps=1, random_start=False)
TRAIN = TrainConfig(ATTACK)
LEARNING_RATE = 0.5
KEYS = StepKeys(jax.random.key(1), jax.random.key(2))


def linear_apply(params: dict, batch_stats: dict, images: jax.Array, train: bool) -> tuple[jax.Array, dict]:
    """A linear model whose "statistics" count training passes, and whose logits show which mode is on."""
    logits = images.reshape(len(images), -1) @ params["kernel"]
    if train:
        return logits, {"passes": batch_stats["passes"] + 1}
    return -logits, batch_stats  # in evaluation mode the loss rises the other way


LINEAR = Model(lambda key: ({}, {}), linear_apply, (2, 2, 1), 3, "dense")


def plan_of(learning_rate: Any = lambda step: LEARNING_RATE, ramp_steps: int = 0) -> StagePlan:
    """A plan for steps that no stage takes."""
    return StagePlan("pretrain", 100, 10, learning_rate, ramp_steps=ramp_steps)


FORMS = {"program": step_as_program, "programs": step_in_programs}


def one_step(
    num_devices: int, form: str = "program", ramp_steps: int = 0, step: int = 0, config: TrainConfig = TRAIN
) -> tuple[TrainState, StepMetrics]:
    mesh = make_mesh(jax.devices()[:num_devices])
    tx = optax.with_extra_args_support(optax.sgd(LEARNING_RATE))
    functions = StepFunctions(LINEAR, tx, config, plan_of(lambda step: LEARNING_RATE + step, ramp_steps))
    params = jax.tree.map(jnp.copy, PARAMS)
    state = TrainState(jnp.int32(step), params, {"passes": jnp.int32(7)}, tx.init(params))
    place = replicated(mesh) if form == "program" else jax.devices()[0]
    state, split = jax.device_put((state, (IMAGES, LABELS)), place)
    return FORMS[form](functions, mesh)(state, BatchInputs(*split, INDICES), KEYS, False)


def by_hand(scale: float, direction: int = -1, smoothing: float = 0.0) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Loss, accuracy and gradient on the attacked batch, and the weights after the step, in NumPy.

    Evaluation mode, which the attack sees, has the logits -x W; a `direction` of 1 is that of training mode.
    """
    kernel = np.asarray(PARAMS["kernel"], np.float64)
    images, labels = IMAGES[INDICES].reshape(8, 4) / 255, LABELS[INDICES]

    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    rising = (softmax(direction * images @ kernel) - np.eye(3)[labels]) @ (direction * kernel.T)
    attacked = images + scale * 0.1 * np.sign(rising)
    logits = attacked @ kernel
    targets = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    loss = -(targets * np.log(softmax(logits))).sum(1).mean()
    gradient = attacked.T @ (softmax(logits) - targets) / 8
    return loss, (logits.argmax(1) == labels).mean(), gradient, kernel - LEARNING_RATE * gradient


@pytest.mark.parametrize(("num_devices", "form"), [(1, "program"), (8, "program"), (8, "programs")])
@pytest.mark.parametrize("ramp_steps,step,scale", [(0, 0, 1.0), (4, 0, 0.25), (4, 2, 0.75), (4, 9, 1.0)])
def test_step_equals_numpy(num_devices: int, form: str, ramp_steps: int, step: int, scale: float) -> None:
    state, metrics = one_step(num_devices, form, ramp_steps, step)
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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("config", "scale", "direction", "smoothing"),
    [
        (TrainConfig(None), 0.0, -1, 0.0),  # natural training
        (TrainConfig(ATTACK, attack_batch_norm="batch"), 1.0, 1, 0.0),
        (TrainConfig(ATTACK, label_smoothing=0.3), 1.0, -1, 0.3),  # the attack sees no smoothing
    ],
)
def test_settings_of_a_step(config: TrainConfig, scale: float, direction: int, smoothing: float, form: str) -> None:
    state, metrics = one_step(8, form, config=config)
    loss, accuracy, _, kernel = by_hand(scale, direction, smoothing)
    np.testing.assert_allclose(state.params["kernel"], kernel, atol=1e-5)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    assert float(metrics.accuracy) == accuracy
    assert float(metrics.epsilon) == pytest.approx(0.1 if config.attack else 0.0)
    assert int(state.batch_stats["passes"]) == 8  # the attack moves no statistics, in whichever mode it sees them


def test_augmentation_and_mixup_change_the_batch() -> None:
    plain, *others = (
        one_step(1, config=config)[0].params["kernel"]
        for config in (
            TrainConfig(None),
            TrainConfig(None, augment=AugmentConfig(crop_padding=1)),
            TrainConfig(None, augment=AugmentConfig(horizontal_flip=True)),
            TrainConfig(None, mixup_alpha=1.0),
        )
    )
    for other in others:
        assert float(jnp.abs(other - plain).max()) > 1e-4


def test_slope_and_sizes_of_the_steps_reach_the_attack() -> None:
    """Against PGD by hand; the unit behind the ReLU is off at the image, so that the slope alone moves it."""
    params = {"kernel": jax.random.normal(jax.random.key(0), (4, 3)), "bias": jnp.array([[0.0, 0.0, -9.0]])}

    def apply(params: dict, batch_stats: dict, images: jax.Array, train: bool) -> tuple[jax.Array, dict]:
        return jax.nn.relu(images.reshape(len(images), -1) @ params["kernel"] + params["bias"]), batch_stats

    attack = AttackConfig(epsilon=0.4, step_size=0.1, num_steps=3, random_start=False, step_schedule="geometric")
    images, labels = jnp.asarray(IMAGES[:6] / np.float32(255)), jnp.full(6, 2)
    inputs = AttackInputs(images, labels, jax.random.split(jax.random.key(3), 6), jnp.float32(0.5))

    def attacked(**changes: Any) -> jax.Array:
        config = TrainConfig(dataclasses.replace(attack, **changes.pop("attack", {})), **changes)
        model = Model(lambda key: ({}, {}), apply, (2, 2, 1), 3, "dense")
        return StepFunctions(model, optax.identity(), config, plan_of()).attack(Weights(params, {}), inputs)

    loss = lambda x: cross_entropy(apply(params, {}, x, False)[0], labels)
    expected = pgd_restarts(
        leaky_backward(loss, 0.9), images, threat_model=ThreatModel("linf", 0.2), key=None, num_steps=3,
        step_size=[0.05, 0.05 * 0.1**0.5, 0.005], random_start=False,
    )  # fmt: skip
    found = attacked(train_leaky_slope=0.9)
    np.testing.assert_allclose(found, expected.adversarial[0], atol=1e-6)
    for other in ({}, {"train_leaky_slope": 0.9, "attack": {"step_schedule": "constant"}}):
        assert jnp.abs(attacked(**other) - found).max() > 1e-3
