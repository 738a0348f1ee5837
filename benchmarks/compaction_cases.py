"""The networks of `benchmarks.compaction`: with their removed filters as zeros, and without them.

    networks = random_networks("resnet18", "each layer")
    networks.dense.model, networks.compacted.weights

A removed filter goes with all that belongs to it: bias, scale and shift.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rap_jax import compaction
from rap_jax.config import ModelConfig
from rap_jax.export.exported_network import ExportedNetwork
from rap_jax.models import Model, create_model
from rap_jax.models.model import Weights
from rap_jax.runs.network import load_network

WIDTH = 8
REMOVED = 0.75
SHAPES = {"lenet_mnist": (28, 28, 1), "resnet18": (32, 32, 3)}


class Networks(NamedTuple):
    """One network in two forms. Attributes: dense: its removed filters are zeros; compacted: they are not there."""

    dense: ExportedNetwork
    compacted: ExportedNetwork


def networks_of_run(run_dir: str) -> Networks:
    """Those of a finished run.

    Raises:
      ValueError: it has not finished; or it is no LeNet of width 8 with a quarter of its filters.
    """
    saved = load_network(run_dir)
    weights: Weights = jax.device_get(saved.weights)
    networks = _both(saved.config, saved.model, weights, saved.results, Path(run_dir))
    expected, found = {"conv1": 4, "conv2": 8, "fc1": 128}, dict(networks.compacted.features)
    if (saved.config.name, saved.config.width, found) != ("lenet_mnist", WIDTH, expected):
        raise ValueError(
            f"The network of {run_dir} is {saved.config.name} of width {saved.config.width} with {found} outputs left; "
            f"expected lenet_mnist of width {WIDTH} with {expected}: --width={WIDTH} --sparsity={REMOVED}."
        )
    return networks


def random_networks(name: str, together: str = "each layer") -> Networks:
    """Random weights, three quarters of the filters of every layer removed at random.

    Args:
      name: of the network.
      together: `each layer` draws its own filters, so that a channel of a sum goes only where all of its writers are
        gone; `each stream`: all layers that add up lose the same.
    """
    config = ModelConfig(name, WIDTH)
    model = create_model(config, input_shape=SHAPES[name], num_classes=10)
    generator = np.random.default_rng(0)
    weights = jax.tree.map(np.array, jax.jit(model.init)(jax.random.key(0)))
    drawn: dict[str, np.ndarray] = {}
    for layer, group in model.wiring.groups.items():
        leaves: Any = weights.params
        for part in layer.split("/"):
            leaves = leaves[part]
        width = leaves["kernel"].shape[-1]
        gone = generator.permutation(width)[: round(REMOVED * width)]
        gone = drawn.setdefault(group, gone) if together == "each stream" else gone
        for leaf in leaves.values():
            leaf[..., gone] = 0
    return _both(config, model, weights, {"data": {}, "model": {}}, Path("random"))


def folded(exported: ExportedNetwork) -> ExportedNetwork:
    """With BatchNorm inside the convolutions, as files for inference have it."""
    if not exported.weights.batch_stats:
        return exported
    model, params, batch_stats, _ = compaction.fold_batch_norm(exported.model, *exported.weights)
    return exported._replace(model=model, weights=Weights(params, batch_stats), folded=True)


def _both(config: ModelConfig, model: Model, weights: Weights, results: dict[str, Any], folder: Path) -> Networks:
    small = compaction.compact(model, *weights)
    common = {"name": folder.name, "config": config, "run_weights": weights, "results": results, "folder": folder}
    forms = ((model, weights), (small.model, Weights(small.params, small.batch_stats)))
    return Networks(*(_exported(model, weights, common) for model, weights in forms))


def _exported(model: Model, weights: Weights, common: dict[str, Any]) -> ExportedNetwork:
    plain = model.replace(implementation="xla")
    return ExportedNetwork(model=plain, weights=weights, features=plain.features, folded=False, **common)
