"""Training the small network is training the whole one under its masks, step by step."""

import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from normed_net import add_normed_net
from numpy_networks import random_weights

from rap_jax.attacks.losses import cross_entropy
from rap_jax.compaction import compaction_plan, expand, shrink
from rap_jax.config import ModelConfig, OptimizerConfig
from rap_jax.models import Model, create_model
from rap_jax.pruning.masks import apply_masks
from rap_jax.pruning.projections import BatchNormFilter, Column, Filter, Spec
from rap_jax.pruning.specs import masks_of
from rap_jax.training.optimizer import make_optimizer

pytestmark = pytest.mark.e2e

ADAM, SGD = OptimizerConfig("adam"), OptimizerConfig("sgd")


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """In float32 rounding turns a ReLU of a deep network on or off, now and then, and the two go different ways."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def normed_net(monkeypatch: pytest.MonkeyPatch) -> None:
    add_normed_net(monkeypatch)


def doubles(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def train(model: Model, params: Any, batch_stats: Any, masks: Any, config: OptimizerConfig) -> Any:
    """Steps on random images, moved once along the gradient as an attack would, and the last gradient's norm."""
    tx = make_optimizer(config, lambda step: 0.01, masks=masks)
    keys = jax.random.split(jax.random.key(5), 3)

    def loss(params: Any, batch_stats: Any, images: jax.Array, train: bool) -> Any:
        found, moved = model.apply(params, batch_stats, images, train)
        return cross_entropy(found, jnp.arange(16) % 10).mean(), moved

    @jax.jit
    def step(params: Any, batch_stats: Any, state: Any, key: jax.Array) -> Any:
        images = jax.random.uniform(key, (16, *model.input_shape))
        images += 10 * jax.grad(loss, 2, has_aux=True)(params, batch_stats, images, False)[0]
        gradient, batch_stats = jax.grad(loss, has_aux=True)(params, batch_stats, images, True)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), batch_stats, state, optax.tree.norm(gradient)

    state = tx.init(params)
    for key in keys:
        params, batch_stats, state, norm = step(params, batch_stats, state, key)
    return params, batch_stats, norm


SHAPES: dict[str, Any] = {"vgg16": (32, 32, 3), "resnet18": (8, 8, 3), "normed_net": (8, 8, 1)}
# The deep ones not with Adam, which makes whole steps of the rounding in a gradient of about zero.
CASES = [
    ("lenet_mnist", Filter(0.5), ADAM),
    ("lenet_mnist", Filter(0.5), SGD),
    ("lenet_mnist", Column(0.34), ADAM),
    ("normed_net", BatchNormFilter(0.5), ADAM),
    ("lenet_mnist_bn", BatchNormFilter(0.5), SGD),
    pytest.param("lenet_mnist_bn", Filter(0.5), ADAM, marks=pytest.mark.e2e),
    pytest.param("vgg16", Filter(0.5), SGD, marks=pytest.mark.nightly),
    pytest.param("resnet18", BatchNormFilter(0.5), SGD, marks=pytest.mark.nightly),
]


def sized(name: str, features: Mapping[str, int] = MappingProxyType({})) -> Model:
    shape = SHAPES.get(name, (8, 8, 1))
    given: Any = {"input_shape": shape, "num_classes": 10, "features": features}
    return create_model(ModelConfig(name, 2), implementation="xla", **given)


@pytest.mark.parametrize(("name", "spec", "config"), CASES)
def test_steps_of_the_small_network_are_those_of_the_whole_one(
    name: str, spec: Spec, config: OptimizerConfig, normed_net: None
) -> None:
    model = sized(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params, batch_stats = (doubles(random_weights(tree, 3)) for tree in shapes)
    groups = list(model.wiring.groups.values())
    expected = {layer for layer in groups if groups.count(layer) == 1}  # of sums, each layer loses other filters
    pruned = {layer: "scale" if isinstance(spec, BatchNormFilter) else "kernel" for layer in expected}
    if isinstance(spec, Column):  # filter 0 of conv1 and neurons of fc1 are read by nobody; conv2 keeps other zeros
        params["conv2"]["kernel"] = params["conv2"]["kernel"].at[:, :, 0].multiply(1e-3)
        pruned, expected = {"conv2": "kernel", "fc2": "kernel"}, {"conv1", "fc1"}
    masks = masks_of({f"{layer}/{leaf}": spec for layer, leaf in pruned.items()}, params)
    params = apply_masks(masks, params)
    plan = compaction_plan(model.wiring, params, masks)
    assert set(plan.features) == expected

    small = sized(name, plan.features)
    small_start = [jax.tree.map(jnp.asarray, shrink(plan, tree)) for tree in (params, batch_stats, masks)]
    large_params, large_stats, large_norm = train(model, params, batch_stats, masks, config)
    small_params, small_stats, small_norm = train(small, *small_start, config)
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-6, atol=1e-8)
    close(expand(plan, small_params, params), large_params)
    close(small_stats, shrink(plan, large_stats))
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), small_params, small_start[0])
    assert max(jax.tree.leaves(moved)) > 1e-3
    if not isinstance(spec, Column):  # of weights that are held at zero the loss has a gradient all the same
        np.testing.assert_allclose(small_norm, large_norm, rtol=1e-6)


def test_weight_decay_shrinks_only_what_is_there() -> None:
    """The difference (1) of `compaction.plan`: dead weights end as they began, and the function does not notice."""
    model = sized("lenet_mnist")
    params = doubles(random_weights(jax.eval_shape(model.init, jax.random.key(0))[0], 3))
    masks = masks_of({"conv1/kernel": Filter(0.5)}, params)
    params = apply_masks(masks, params)
    plan = compaction_plan(model.wiring, params, masks)
    config = OptimizerConfig("sgd", weight_decay=0.1)
    large_params, _, _ = train(model, params, {}, masks, config)
    small_params, _, _ = train(sized("lenet_mnist", plan.features), shrink(plan, params), {}, None, config)
    whole = expand(plan, small_params, params)
    chex.assert_trees_all_close(small_params, shrink(plan, large_params), rtol=1e-6, atol=1e-8)
    dead = ~plan.kept["conv1"]
    before, after, ours = (tree["conv2"]["kernel"][:, :, dead] for tree in (params, large_params, whole))
    np.testing.assert_array_equal(ours, before)
    assert (np.abs(after) < np.abs(before)).all()
