"""Adversarial weight perturbation: its length and direction, and an update with it against NumPy."""

import dataclasses
import functools
from typing import Any

import average_test
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train_test import ATTACK, FORMS, IMAGES, INDICES, KEYS, LABELS, LEARNING_RATE, LINEAR, PARAMS, plan_of

from rap_jax._runtime.mesh import gather, make_mesh, replicated, state_shardings
from rap_jax.config import TrainConfig
from rap_jax.data.batches import BatchInputs
from rap_jax.models import Model
from rap_jax.training.state import TrainState
from rap_jax.training.step import StepFunctions, perturb_weights

pytestmark = pytest.mark.usefixtures("optimised")

GAMMA = 0.3
PRUNED = {"kernel": PARAMS["kernel"].at[1].set(0)}


def random_tree(seed: int) -> dict[str, jax.Array]:
    shapes = {"conv": (3, 3, 2, 4), "dense": (5, 3), "bias": (4,), "scale": ()}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(key, shape) for (name, shape), key in zip(shapes.items(), keys, strict=True)}


def test_kernels_move_uphill_by_a_share_of_their_norm_and_zeros_do_not() -> None:
    weights, gradients = random_tree(0), random_tree(1)
    weights["conv"] = weights["conv"].at[..., 2].set(0)
    moved = jax.jit(perturb_weights, static_argnums=2)(weights, gradients, GAMMA)
    for name in ("conv", "dense"):
        weight, gradient, step = (
            np.asarray(leaf).ravel() for leaf in (weights[name], gradients[name], moved[name] - weights[name])
        )
        np.testing.assert_allclose(np.linalg.norm(step), GAMMA * np.linalg.norm(weight), rtol=1e-5)
        counted = np.where(weight != 0, gradient, 0)
        expected = GAMMA * np.linalg.norm(weight) * counted / np.linalg.norm(counted)
        np.testing.assert_allclose(step, expected, atol=1e-6)
    assert not np.any(moved["conv"][..., 2])
    for name in ("bias", "scale"):
        np.testing.assert_array_equal(moved[name], weights[name])


@pytest.mark.parametrize("zero", ["gradient", "weights"])
def test_without_a_direction_nothing_moves(zero: str) -> None:
    weights, gradients = random_tree(0), random_tree(1)
    nothing = jax.tree.map(jnp.zeros_like, weights)
    given = (nothing, gradients) if zero == "weights" else (weights, nothing)
    for leaf, before in zip(*map(jax.tree.leaves, (perturb_weights(*given, GAMMA), given[0])), strict=True):
        np.testing.assert_array_equal(leaf, before)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def watched(calls: list[int]) -> Model:
    """The linear model, whose statistics show at which weights the pass was."""

    def apply(params: Any, batch_stats: Any, images: jax.Array, train: bool) -> Any:
        calls.append(train)
        logits, _ = LINEAR.apply(params, {"passes": jnp.int32(0)}, images, train)
        return logits, {"sum": params["kernel"].sum()} if train else batch_stats

    return dataclasses.replace(LINEAR, apply=apply)


@pytest.mark.parametrize(("num_devices", "form"), [(1, "program"), (8, "program"), (8, "programs")])
def test_an_update_equals_numpy(num_devices: int, form: str) -> None:
    calls: list[int] = []
    mesh, tx = make_mesh(jax.devices()[:num_devices]), optax.with_extra_args_support(optax.sgd(LEARNING_RATE))
    functions = StepFunctions(watched(calls), tx, TrainConfig(ATTACK, awp_gamma=GAMMA), plan_of())
    params = jax.tree.map(jnp.copy, PRUNED)
    state = TrainState(jnp.int32(0), params, {"sum": jnp.float32(0)}, tx.init(params))
    place = replicated(mesh) if form == "program" else jax.devices()[0]
    state, split = jax.device_put((state, (IMAGES, LABELS)), place)
    state, metrics = FORMS[form](functions, mesh)(state, BatchInputs(*split, INDICES), KEYS, False)

    kernel = np.asarray(PRUNED["kernel"], np.float64)
    images, labels = IMAGES[INDICES].reshape(8, 4) / 255, np.eye(3)[LABELS[INDICES]]
    # The attack sees the logits -x W, at the weights.
    attacked = images + 0.1 * np.sign((softmax(-images @ kernel) - labels) @ -kernel.T)
    gradient_at = lambda weights: attacked.T @ (softmax(attacked @ weights) - labels) / 8
    first = gradient_at(kernel)
    uphill = np.where(kernel != 0, first, 0)
    moved = kernel + GAMMA * np.linalg.norm(kernel) * uphill / np.linalg.norm(uphill)
    second = gradient_at(moved)
    assert np.abs(second - first).max() > 0.01
    np.testing.assert_allclose(state.params["kernel"], kernel - LEARNING_RATE * second, atol=1e-5)
    loss = -(labels * np.log(softmax(attacked @ kernel))).sum(1).mean()
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.gradient_norm, np.linalg.norm(first), rtol=1e-5)
    np.testing.assert_allclose(state.batch_stats["sum"], kernel.sum(), rtol=1e-5)  # of the pass at the weights
    assert sum(calls) == 2


def test_weights_in_pieces_move_as_whole_ones() -> None:
    found = []
    config = dataclasses.replace(average_test.TRAIN, awp_gamma=GAMMA)
    tx = optax.with_extra_args_support(optax.sgd(LEARNING_RATE))
    for num_devices, num_model_shards in ((1, 1), (4, 2)):
        mesh = make_mesh(jax.devices()[:num_devices], num_model_shards=num_model_shards)
        gather_state = functools.partial(gather, mesh=mesh)
        functions = StepFunctions(average_test.MODEL, tx, config, average_test.PLAN, gather_state)
        params = {"kernel": jnp.copy(average_test.KERNEL)}
        state = TrainState(jnp.int32(0), params, {"mean": jnp.zeros(64)}, tx.init(params))
        state = jax.device_put(state, state_shardings(state, mesh, unsharded=replicated(mesh)))
        split = jax.device_put((average_test.IMAGES, average_test.LABELS), replicated(mesh))
        inputs = BatchInputs(*split, np.arange(16, dtype=np.int32))
        state, _ = FORMS["program"](functions, mesh)(state, inputs, KEYS, False)
        found.append(state.params["kernel"])
    assert found[1].addressable_shards[0].data.size == 64 * 64 / 2
    np.testing.assert_allclose(*map(np.asarray, found), atol=1e-5)
