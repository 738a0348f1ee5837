"""Passes in bfloat16: what is narrow inside, what stays float32, and that the numbers are nearly the same."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from batch_norm_test import MEAN, VAR, VARIABLES, draw
from flax import linen as nn
from tiers import large_later

from rap_jax._runtime.mesh import make_mesh
from rap_jax.attacks.losses import cross_entropy
from rap_jax.config import AttackConfig, ModelConfig, TrainConfig, free_attack
from rap_jax.data.batches import BatchInputs
from rap_jax.models import IMPLEMENTATIONS, NETWORKS, Model, create_model, from_linen, in_dtype
from rap_jax.models.layers.batch_norm import BatchNorm
from rap_jax.models.layers.linear import ConvNorm, Dense
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.sharded_step import make_train_step
from rap_jax.training.state import StepKeys, TrainState, first_perturbation
from rap_jax.training.step import StepFunctions

SHAPE = (16, 16, 1)
PLAN = StagePlan("pretrain", 100, 10, lambda step: 0.1)
PRODUCT = re.compile(r":(\w+)\[[^]]*\] = (?:dot_general|conv_general_dilated)\[")
LABELS = np.arange(16, dtype=np.int32) % 10
IMAGES = np.random.default_rng(0).integers(0, 256, (16, *SHAPE), np.uint8)


class NormedNet(nn.Module):
    """A convolution with BatchNorm, a BatchNorm by itself and a dense layer."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        conv = ConvNorm(6, kernel_size=3, padding=1, kernel_init=nn.initializers.he_normal(), name="conv")
        hidden = nn.relu(BatchNorm(6, name="norm")(nn.relu(conv(images, train)), train))
        return Dense(10, name="fc")(hidden.mean((1, 2)))


def normed_net() -> Model:
    return from_linen(NormedNet(), input_shape=SHAPE, num_classes=10, output_layer="fc")


def lenet() -> Model:
    return create_model(ModelConfig("lenet_mnist", width=2), input_shape=SHAPE, num_classes=10)


def both_gradients(model: Model, params: Any, batch_stats: Any, images: jax.Array, train: bool) -> Any:
    """Gradients of the loss with respect to params and images; logits and statistics."""

    def loss(params: Any, images: jax.Array) -> Any:
        logits, moved = model.apply(params, batch_stats, images, train)
        return cross_entropy(logits, jnp.arange(len(images)) % 10).mean(), (logits, moved)

    return jax.grad(loss, (0, 1), has_aux=True)(params, images)


def assert_all_float32(tree: Any) -> None:
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} <= {"float32"}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("name", large_later(NETWORKS))
def test_only_the_inside_is_narrow(name: str, implementation: Any, train: bool) -> None:
    """Every product of every network is one of bfloat16s, and nothing else comes out as one."""
    shape = (32, 32, 1)
    model = create_model(ModelConfig(name, 2), input_shape=shape, num_classes=10, implementation=implementation)
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    found = {}
    for dtype in ("float32", "bfloat16"):
        passes = lambda *given, dtype=dtype: both_gradients(in_dtype(model, dtype), *given, train)
        traced = jax.jit(passes).trace(params, batch_stats, images)
        found[dtype] = PRODUCT.findall(str(traced.jaxpr))
        assert_all_float32(traced.out_info)
    assert set(found["float32"]) == {"f32"} and set(found["bfloat16"]) == {"bf16"}
    assert len(found["float32"]) == len(found["bfloat16"])


def similarity(found: Any, expected: Any) -> float:
    """Cosine of the angle between two trees of gradients."""
    found, expected = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (found, expected))
    return float(found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))


@pytest.mark.e2e
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("network", [lenet, normed_net])
def test_numbers_are_nearly_those_of_float32(network: Callable[[], Model], train: bool) -> None:
    model = network()
    start, images = model.init(jax.random.key(0)), jnp.asarray(IMAGES / np.float32(255))
    (wide, (logits, stats)), (narrow, (near_logits, near_stats)) = (
        jax.jit(lambda *given, dtype=dtype: both_gradients(in_dtype(model, dtype), *given, train))(*start, images)
        for dtype in ("float32", "bfloat16")
    )
    # Rounding turns some ReLUs on or off and makes other pixels the largest of their windows: that is most of it.
    taken = slice(None) if train else slice(1, None)  # in evaluation mode only an attack takes gradients: of the images
    for found, expected in zip(narrow[taken], wide[taken], strict=True):
        assert 0.98 < similarity(found, expected) < 1 - 1e-6
        assert optax.tree.norm(found) == pytest.approx(float(optax.tree.norm(expected)), rel=0.05)
    np.testing.assert_allclose(near_logits, logits, atol=2**-6 * np.abs(logits).max())
    jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-2, atol=1e-2), near_stats, stats)


def test_moments_of_narrow_inputs_are_wide() -> None:
    inputs = jnp.asarray(100 + draw((64, 4, 3))).astype(jnp.bfloat16)
    norm = {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), VARIABLES["params"])}
    outputs, moved = BatchNorm(3).apply(VARIABLES | norm, inputs, train=True, mutable=["batch_stats"])
    rows = np.asarray(inputs, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.9 * MEAN + 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 * VAR + 0.1 * rows.var(0, ddof=1), rtol=1e-5)
    assert outputs.dtype == jnp.bfloat16
    scale, shift = (np.asarray(norm["params"][name], np.float64) for name in ("scale", "shift"))
    expected = (np.asarray(inputs, np.float64) - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * scale + shift
    np.testing.assert_allclose(np.asarray(outputs, np.float64), expected, rtol=2**-8, atol=1e-3)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "train",
    [
        TrainConfig(AttackConfig(epsilon=0.1, step_size=0.05, num_steps=2), compute_dtype="bfloat16"),
        TrainConfig(free_attack("linf", 0.1), free_replays=2, compute_dtype="bfloat16"),
    ],
    ids=["pgd", "free"],
)
def test_a_step_keeps_its_state_in_float32(train: TrainConfig) -> None:
    model, tx = normed_net(), optax.with_extra_args_support(optax.sgd(0.1, momentum=0.9))
    config = {"bfloat16": train, "float32": TrainConfig(train.attack, free_replays=train.free_replays)}
    (start, stats), after = model.init(jax.random.key(0)), {}
    for dtype, settings in config.items():
        params, batch_stats = jax.tree.map(jnp.copy, (start, stats))
        nothing = first_perturbation(settings, IMAGES.shape)
        state = TrainState(jnp.int32(0), params, batch_stats, tx.init(params), nothing)
        step = make_train_step(model, tx, settings, PLAN, make_mesh(jax.devices()[:1]))
        keys = StepKeys(jax.random.key(1), jax.random.key(2))
        inputs = BatchInputs(jnp.asarray(IMAGES), jnp.asarray(LABELS), np.arange(16, dtype=np.int32))
        after[dtype], metrics = step(state, inputs, keys, False)
        assert_all_float32((after[dtype]._replace(step=()), metrics))
    near, exact = (jax.tree.leaves(after[dtype].params) for dtype in config)
    for old, found, expected in zip(jax.tree.leaves(start), near, exact, strict=True):
        moved = np.linalg.norm(expected - old)
        assert moved > 0 and 0 < np.linalg.norm(found - expected) < 0.3 * moved + 1e-4


@pytest.mark.e2e
def test_attacked_images_are_exact() -> None:
    """A perturbation in bfloat16 would be off by more than a thousandth."""
    attack = AttackConfig(epsilon=8 / 255, step_size=8 / 255, num_steps=3)
    functions = StepFunctions(
        in_dtype(lenet(), "bfloat16"),
        optax.with_extra_args_support(optax.sgd(0.1)),
        TrainConfig(attack),
        PLAN,
    )
    weights = functions.model.init(jax.random.key(0))
    keys = StepKeys(jax.random.key(1), jax.random.key(2))
    batch = functions.prepare(jnp.int32(0), BatchInputs(jnp.asarray(IMAGES), jnp.asarray(LABELS), np.arange(16)), keys)
    images = np.asarray(jax.jit(lambda weights, batch: functions.attack(weights, batch))(weights, batch))
    moved = images - IMAGES / np.float32(255)
    assert images.dtype == np.float32 and np.abs(moved).max() == pytest.approx(8 / 255, abs=1e-6)


def test_float32_leaves_a_network_as_it_is() -> None:
    model = lenet()
    assert in_dtype(model, "float32") is model
    with pytest.raises(ValueError, match="compute_dtype is 'float16'; expected one of float32, bfloat16"):
        in_dtype(model, "float16")
    with pytest.raises(ValueError, match="compute_dtype is 'float16'; expected one of float32, bfloat16"):
        TrainConfig(None, compute_dtype="float16")  # type: ignore[arg-type]
