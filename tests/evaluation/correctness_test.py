"""The programs of an evaluation have no collective, and an image's correctness does not depend on its neighbours."""

import re
from typing import Any

import jax
import numpy as np
import pytest
from tiers import large_later

from rap_jax._runtime.mesh import make_mesh, put_split, replicated, split_over_data
from rap_jax.attacks import ThreatModel
from rap_jax.config import AttackConfig, ModelConfig
from rap_jax.evaluation.correctness import Examples, SplitPredictor, attack_program, clean_program
from rap_jax.models import create_model

COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+", re.IGNORECASE)
SHAPE, NUM_EXAMPLES = (8, 8, 1), 24
ATTACK = AttackConfig(epsilon=0.2, step_size=0.05, num_steps=2, num_restarts=3)


@pytest.mark.parametrize("network", large_later(["lenet_mnist", "resnet18"]))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_device_waits_for_another(network: str, norm: Any) -> None:
    mesh = make_mesh()
    model = create_model(ModelConfig(network, width=1), input_shape=(16, 16, 1), num_classes=10)
    weights = jax.eval_shape(model.init, jax.random.key(0))
    numbers = np.zeros(16, np.int32)
    examples = Examples(np.zeros((16, 16, 16, 1), np.uint8), numbers, numbers, numbers)
    whole, share = replicated(mesh), split_over_data(mesh)
    like = lambda tree, place: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)
    arguments = like(weights, whole), like(jax.random.key(0), whole), like(examples, share)
    attack = AttackConfig(norm=norm, epsilon=0.1, step_size=0.05, num_steps=2, num_restarts=2)
    threat_model = ThreatModel(norm, 0.1)
    for program in (clean_program(model, threat_model, mesh), attack_program(model, attack, threat_model, mesh)):
        compiled: Any = program
        text = compiled.lower(*arguments).compile().as_text()
        assert "num_partitions=8" in text
        assert not COLLECTIVE.findall(text)


@pytest.mark.e2e
def test_correctness_depends_on_example_and_restart_alone() -> None:
    generator, mesh = np.random.default_rng(0), make_mesh()
    images = generator.integers(0, 256, (NUM_EXAMPLES, *SHAPE), np.uint8)
    model = create_model(ModelConfig("lenet_mnist", width=1), input_shape=SHAPE, num_classes=10)
    weights = jax.jit(model.init)(jax.random.key(0))
    labels = np.asarray(model.apply(*weights, images / np.float32(255), False)[0].argmax(-1), np.int32)
    predictor = SplitPredictor(model, ATTACK, mesh)
    inputs = predictor.open(weights, put_split(images, labels, mesh), jax.random.key(1))
    everything = np.arange(NUM_EXAMPLES, dtype=np.int32)
    assert predictor.clean(inputs, everything).all()

    table = np.stack([predictor.attacked(inputs, everything, np.full_like(everything, r)) for r in range(3)], axis=1)
    assert 0 < table.all(1).sum() < table[:, 0].sum() < NUM_EXAMPLES  # restarts differ, and decide
    for _ in range(4):
        numbers = generator.integers(0, NUM_EXAMPLES, 16).astype(np.int32)
        restarts = generator.integers(0, 3, 16).astype(np.int32)
        np.testing.assert_array_equal(predictor.attacked(inputs, numbers, restarts), table[numbers, restarts])
