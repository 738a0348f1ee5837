"""The folder of a finished run on the tiny data, made without the trainer, and attacks that take no time."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from rap_jax._runtime.integrity import write_checked
from rap_jax.attacks import ThreatModel
from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.square import Square
from rap_jax.config import EvaluationConfig, ModelConfig
from rap_jax.data import Dataset, Split
from rap_jax.evaluation.auto_attack.versions import Component
from rap_jax.models import create_model
from rap_jax.runs.network import save_network

EPSILON = 0.08
CONFIG = EvaluationConfig(EPSILON, num_images=40, pgd_num_steps=4, pgd_num_restarts=2)
THREAT_MODEL = ThreatModel("linf", EPSILON)
COMPONENTS = (
    Component("apgd-ce", Apgd(THREAT_MODEL, num_steps=5)),
    Component("square", Square(THREAT_MODEL, num_steps=10)),
)


def tiny_function(seed: int = 0) -> Callable[[jax.Array], jax.Array]:
    """Images -> logits of the tiny data, quickly compiled: random features, and the least squares on top of them."""
    split = tiny.tiny_dataset().train
    into = np.random.default_rng(seed).normal(size=(64, 40)).astype(np.float32)
    features = np.tanh(split.images.reshape(-1, 64) / np.float32(255) @ into)
    out = np.linalg.lstsq(features, np.eye(10, dtype=np.float32)[split.labels])[0]
    weights = jnp.asarray(into), 5 * jnp.asarray(out)
    return lambda images: jnp.tanh(images.reshape(images.shape[0], 64) @ weights[0]) @ weights[1]


def mislabelled() -> Dataset:
    """The tiny data with wrong labels on the first three test images: a network that is right is wrong there."""
    data = tiny.tiny_dataset()
    labels = data.test.labels.copy()
    labels[:3] = (labels[:3] + 1) % 10
    return dataclasses.replace(data, test=Split(data.test.images, labels))


def make_run(folder: Path, seed: int = 0) -> Path:
    """Writes what an evaluation reads of a run."""
    folder.mkdir(parents=True)
    model = create_model(ModelConfig("lenet_mnist", 1, "kaiming_normal"), input_shape=(8, 8, 1), num_classes=10)
    weights = model.init(jax.random.key(seed))
    save_network(folder, weights, initial=weights)
    config = dataclasses.asdict(tiny.tiny_config())
    results = {
        "name": "tiny",
        "dataset": "tiny",
        "data": tiny.tiny_dataset().describe() | {"validation_seed": 1, "validation_fraction": 0.1},
        "model": {"name": "lenet_mnist", "width": 1, "initializer": "kaiming_normal"},
        "config": config,
        "stages": {},
    }
    (folder / "results.json").write_text(write_checked(results))
    return folder
