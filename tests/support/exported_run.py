"""Runs to export: random networks of every kind whose logits depend on their images, with filters removed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tiny_run import make_run

from rap_jax._runtime.integrity import read_checked, write_checked
from rap_jax.config import ModelConfig
from rap_jax.models import Model, create_model
from rap_jax.models.model import Weights
from rap_jax.runs.network import load_network, save_network

# Of each network a small one, on images that are not square.
NETWORKS = {
    "lenet_mnist": (8, 13, 1),
    "lenet_mnist_bn": (8, 13, 1),
    "lenet_cifar": (20, 17, 3),
    "vgg16": (32, 34, 3),
    "resnet18": (9, 8, 3),
    "wide_resnet28": (8, 9, 3),
}
TEST = {
    "natural_accuracy": 0.9, "natural_interval": [0.8, 0.95], "robust_accuracy": 0.5, "robust_interval": [0.4, 0.6],
    "num_examples": 60,
    "attack": {"norm": "linf", "epsilon": 0.1, "step_size": 0.05, "num_steps": 2, "num_restarts": 2,
               "random_start": True},
}  # fmt: skip


def network(name: str, width: int = 1) -> tuple[Model, Weights]:
    """A network of that name; its weights keep the size of what passes through, so that logits differ by image."""
    model = create_model(
        ModelConfig(name, width, "default"), input_shape=NETWORKS[name], num_classes=10, implementation="xla"
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        kind = path[-1].key
        if kind == "kernel":
            values = rng.normal(size=leaf.shape) * np.sqrt(3 / np.prod(leaf.shape[:-1]))
        elif kind in ("scale", "var"):
            values = rng.uniform(0.7, 1.3, leaf.shape)
        else:
            values = rng.normal(size=leaf.shape) / 10
        return values.astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def whole_logits_fn(run: Path) -> Callable[[Any], jax.Array]:
    """What the network of a run says, with its zeros in place."""
    saved = load_network(run)
    return jax.jit(lambda images: saved.model.apply(*saved.weights, images, False)[0])


def images_for(name: str, count: int = 5) -> np.ndarray:
    """Noise, each image darker than the one before."""
    noise = np.random.default_rng(2).random((count, *NETWORKS[name]), np.float32)
    return noise * np.linspace(1, 0.1, count, dtype=np.float32).reshape(-1, 1, 1, 1)


def make_pruned_run(folder: Path, *, irregular: bool = False) -> Path:
    """The tiny run of `make_run` with half of the filters of conv2 at zero, or 80% of the weights of fc1."""
    make_run(folder)
    model = create_model(
        ModelConfig("lenet_mnist", 1, "kaiming_normal"), input_shape=(8, 8, 1), num_classes=10, implementation="xla"
    )
    weights: Weights = jax.tree.map(np.array, model.init(jax.random.key(3)))
    if irregular:
        kept = np.random.default_rng(4).random((16, 64)) > 0.8
        kept[0] = True  # no neuron is gone as a whole
        weights.params["fc1"]["kernel"] *= kept
    else:
        weights.params["conv2"]["kernel"][..., :2] = 0
        weights.params["conv2"]["bias"][:2] = 0
    shutil.rmtree(folder / "network")
    save_network(folder, weights, initial=weights)
    results = read_checked((folder / "results.json").read_text())
    about = {"test": TEST, "command": "python -m launch.main", "versions": {"jax": "0.10"}, "seed": 1}
    (folder / "results.json").write_text(write_checked(results | about))
    return folder
