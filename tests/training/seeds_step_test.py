"""A step of several networks is that of each alone; images that they share lie on the devices once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rap_jax._runtime.mesh import make_mesh, put_split, replicated, take_images
from rap_jax.config import AttackConfig, DataConfig, TrainConfig
from rap_jax.data import Split, load, load_dataset, load_datasets
from rap_jax.data.batches import BatchInputs
from rap_jax.data.dataset import PooledImages, TrainTest
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.training.input import Order, PooledInput, make_input, pooled_inputs
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.seeds_step import make_seeds_step
from rap_jax.training.sharded_step import make_train_step
from rap_jax.training.state import StepKeys, TrainState
from rap_jax.training.step import StepFunctions

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 2, 2, 1), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, 24).astype(np.int32)
INDICES = np.random.default_rng(2).integers(0, 24, (4, 3, 8)).astype(np.int32)  # of 4 steps of 3 seeds
TRAIN = TrainConfig(AttackConfig(epsilon=0.1, step_size=0.05, num_steps=2), ema_decay=0.9)
PLAN = StagePlan("pretrain", 100, 10, lambda step: jnp.float32(0.5))
SEEDS = range(3)


def linear_apply(params: Any, batch_stats: Any, images: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    return images.reshape(len(images), -1) @ params["kernel"], batch_stats


MODEL = Model(lambda key: ({}, {}), linear_apply, (2, 2, 1), 3, "dense")


def first_state(seed: int, tx: Any) -> TrainState:
    params = {"kernel": jax.random.normal(jax.random.key(seed), (4, 3))}
    return TrainState(jnp.int32(0), params, {}, tx.init(params), average=Weights(jax.tree.map(jnp.copy, params), {}))


def keys_of(seed: int) -> StepKeys:
    return StepKeys(jax.random.key(10 + seed), jax.random.key(20 + seed))


def trained_alone(seed: int, tx: Any) -> tuple[TrainState, Any]:
    mesh = make_mesh(jax.devices()[:1])
    step = make_train_step(MODEL, tx, TRAIN, PLAN, mesh)
    state, metrics = jax.device_put(first_state(seed, tx), replicated(mesh)), None
    for indices in INDICES:
        state, metrics = step(state, BatchInputs(*put_split(IMAGES, LABELS, mesh), indices[seed]), keys_of(seed), False)
    return jax.device_get((state, metrics))


@pytest.mark.parametrize(("num_devices", "stacked"), [(1, None), (2, None), (8, None), (1, True), (2, True), (8, True)])
def test_steps_of_three_seeds_are_those_of_each_alone(num_devices: int, stacked: bool | None) -> None:
    tx, mesh = optax.with_extra_args_support(optax.adam(0.1)), make_mesh(jax.devices()[:num_devices])
    functions = StepFunctions(MODEL, tx, TRAIN, PLAN)
    pool = put_split(IMAGES, LABELS, make_mesh(jax.devices()[:1]))
    step = make_seeds_step(functions, pool, len(SEEDS), mesh, stacked=stacked)
    states, keys = step.join([first_state(seed, tx) for seed in SEEDS]), step.join([keys_of(seed) for seed in SEEDS])
    for indices in INDICES:
        states, metrics = step.advance(states, indices, keys, False)
    found = jax.device_get(step.split(states)), step.split_metrics(jax.device_get(metrics))
    assert {leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(step.split(states))} == {True}
    for seed, *both in zip(SEEDS, *found, strict=True):
        for ours, alone in zip(jax.tree.leaves(both), jax.tree.leaves(trained_alone(seed, tx)), strict=True):
            if stacked:
                np.testing.assert_allclose(ours, alone, rtol=2e-4, atol=1e-6)
            else:  # on a CPU each has its own program
                np.testing.assert_array_equal(ours, alone)


def test_seeds_share_images_and_have_the_batches_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(3).integers(0, 256, (240, 2, 2, 1), np.uint8)
    train, test = Split(images[:200], np.arange(200, dtype=np.int32) % 10), Split(images[200:], np.zeros(40, np.int32))
    packaged = lambda: TrainTest(train, test, tuple("0123456789"))
    monkeypatch.setitem(load._PACKAGED, "mnist_5k", packaged)  # type: ignore[arg-type]
    config = DataConfig(dataset="mnist_5k")
    together, mesh = load_datasets(config, seeds=(3, 4)), make_mesh(jax.devices()[:1])
    inputs = pooled_inputs([dataset.train for dataset in together], mesh)
    assert inputs[0].pool is inputs[1].pool
    assert len(inputs[0].pool.labels) == len(together[0].train.labels) + len(together[0].validation.labels)
    ours, alone = together[1], load_dataset(config, seed=4)
    assert ours.describe() == alone.describe() and ours.test.images is together[0].test.images
    np.testing.assert_array_equal(ours.validation.images, alone.validation.images)
    order = Order(jax.random.key(4), len(alone.train.labels), 32)
    (images, labels, indices), (other_images, other_labels, others) = (
        next(iter(each.batches(order, range(2, 3)))) for each in (inputs[1], make_input(alone.train, mesh))
    )
    np.testing.assert_array_equal(images[indices], other_images[others])
    np.testing.assert_array_equal(labels[indices], other_labels[others])


def test_images_of_several_arrays_lie_side_by_side() -> None:
    mesh = make_mesh(jax.devices()[:1])
    splits = [Split(IMAGES, LABELS), Split(255 - IMAGES, LABELS[::-1]), Split(IMAGES, LABELS)]
    inputs = pooled_inputs(splits, mesh)
    assert len(inputs[0].pool.images) == 48
    for split, each in zip(splits, inputs, strict=True):
        images, labels, indices = next(iter(each.batches(Order(jax.random.key(0), 24, 24), range(1))))
        order = Order(jax.random.key(0), 24, 24).batch(0)
        np.testing.assert_array_equal(take_images(images, indices, (2, 2, 1)), split.images[order])
        np.testing.assert_array_equal(labels[indices], split.labels[order])
    some: Any = PooledImages(IMAGES, np.array([5, 2]))
    assert isinstance(make_input(Split(some, LABELS[[5, 2]]), mesh), PooledInput)
