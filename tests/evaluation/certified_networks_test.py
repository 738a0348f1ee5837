"""Certificates of this package's networks: the same in each form of them, and true of what they compute."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import nightly_but

from rap_jax.attacks import ThreatModel
from rap_jax.compaction import compact, fold_batch_norm
from rap_jax.config import ModelConfig
from rap_jax.evaluation.certificates import METHODS, margin_bounds
from rap_jax.models import Model, create_model
from rap_jax.models.model import Weights

pytestmark = [pytest.mark.usefixtures("optimised"), pytest.mark.e2e]

SHAPES = {"lenet_mnist": (8, 12, 1), "lenet_mnist_bn": (8, 12, 1), "lenet_cifar": (24, 20, 3), "resnet18": (16, 16, 3)}
LINF = ThreatModel("linf", 0.02)


def network(name: str, implementation: str = "xla") -> Model:
    return create_model(ModelConfig(name, 1), input_shape=SHAPES[name], num_classes=4, implementation=implementation)


def weights_of(model: Model) -> Weights:
    """Drawn at random, statistics of BatchNorm too."""
    shift = lambda x: x + 0.1 * jax.random.uniform(jax.random.key(1), x.shape)
    return jax.tree.map(shift, jax.jit(model.init)(jax.random.key(0)))


def images_of(model: Model) -> tuple[jax.Array, jax.Array]:
    return jax.random.uniform(jax.random.key(2), (2, *model.input_shape)), jnp.array([1, 3])


def margins_of(model: Model, weights: Any, method: Any = "crown_ibp") -> jax.Array:
    images, labels = images_of(model)
    bound = lambda images: margin_bounds(
        lambda x: model.logits(weights, x), images, labels, threat_model=LINF, method=method
    )
    return jax.jit(bound)(images)


@pytest.mark.parametrize("name", nightly_but(["lenet_mnist"], SHAPES))
def test_bounds_contain_the_logits_in_both_forms(name: str) -> None:
    model, plain = network(name, "auto"), network(name)
    weights = weights_of(plain)
    images, labels = images_of(model)
    moved = jax.vmap(lambda key: LINF.perturb(images, LINF.random_start(key, images)))(
        jax.random.split(jax.random.key(3), 200)
    )
    logits = jax.lax.map(jax.jit(lambda x: plain.logits(weights, x)), moved)
    margins = logits[:, jnp.arange(2), labels][..., None] - logits
    for method in METHODS if name == "lenet_mnist" else METHODS[:2]:
        found = margins_of(plain, weights, method)
        assert np.all(found <= margins.min(0) + 1e-4)
        other = margins_of(model, weights, method)
        # Sums of sums, as in Winograd's convolution, have wider intervals.
        assert np.all(other <= found + 1e-3 * np.abs(found).max())
        if name != "resnet18":
            np.testing.assert_allclose(other, found, rtol=1e-3, atol=1e-4 * np.abs(found).max())


def test_folding_batch_norm_changes_no_bound() -> None:
    model = network("lenet_mnist_bn")
    weights = weights_of(model)
    folded = fold_batch_norm(model, *weights)
    expected = margins_of(model, weights)
    np.testing.assert_allclose(margins_of(folded.model, Weights(folded.params, {})), expected, rtol=1e-3, atol=1e-3)


def test_compaction_changes_no_bound() -> None:
    model = network("lenet_mnist")
    weights = weights_of(model)
    params = jax.tree.map(np.array, weights.params)
    for layer in ("conv1", "conv2", "fc1"):
        for leaf in params[layer].values():
            leaf[..., ::2] = 0
    small = compact(model, params, {})
    expected = margins_of(model, Weights(params, {}))
    np.testing.assert_allclose(margins_of(small.model, Weights(small.params, {})), expected, rtol=1e-3, atol=1e-3)
