"""The network that is exported, and the metadata of its file.

    exported = open_exported_network("runs/lenet_mnist_mnist_seed0")
    logits = exported.logits_fn(images)

It is the network of a finished run, compacted and with BatchNorm folded. The metadata describe its input and output,
its accuracies and its training: the same nested dict in every format, ready for JSON, taken from the results of the
run.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rap_jax import compaction
from rap_jax._runtime.environment import versions
from rap_jax._runtime.functions import exact_products
from rap_jax._runtime.integrity import digest, read_checked
from rap_jax.config import ModelConfig
from rap_jax.models import Model, create_model, num_params
from rap_jax.models.model import Weights
from rap_jax.pruning.masks import count_sparsity
from rap_jax.runs.network import load_network

SCHEMA = 1
_MEASURED_ON = (
    "the network of the run, before outputs that cannot affect the logits were removed and BatchNorm was folded; that "
    "changes logits by rounding alone"
)
_MEASURES = ("clean", "certificates", "pgd", "auto_attack", "transfer", "combined")


class ExportedNetwork(NamedTuple):
    """A network in the form in which it is exported."""

    name: str  # of the run's folder
    config: ModelConfig  # architecture, width and initializer
    model: Model  # as pure functions, in the form that every device computes
    weights: Weights  # of that model, numpy arrays
    features: Mapping[str, int]  # layer -> number of outputs, of the layers that have lost some
    folded: bool  # whether BatchNorm is part of the convolutions
    run_weights: Weights  # of the run's network, with the zeros
    results: dict[str, Any]  # content of the run's results.json
    folder: Path  # of the run

    @property
    def logits_fn(self) -> Callable[[jax.Array], jax.Array]:
        """Images [N, H, W, C] in [0, 1] -> logits [N, K], in evaluation mode, the weights inside.

        A file of it has `exact_products`: its logits are the same on every device, but for rounding.
        """
        return exact_products(lambda images: self.model.logits(self.weights, images))


def open_exported_network(run_dir: str | Path, *, compact: bool = True, fold: bool = True) -> ExportedNetwork:
    """Reads the network of a finished run.

    Args:
      run_dir: the run's folder.
      compact: without the outputs that cannot affect the logits.
      fold: BatchNorm as part of the convolutions.

    Raises:
      ValueError: the run has not finished, or its files are missing or damaged.
    """
    folder = Path(run_dir).expanduser()
    saved = load_network(folder)
    weights: Weights = jax.device_get(saved.weights)
    small, features, folded = _smaller(saved.model, weights, compact=compact, fold=fold)
    return ExportedNetwork(
        name=folder.resolve().name,
        config=saved.config,
        model=create_model(
            saved.config,
            input_shape=saved.model.input_shape,
            num_classes=saved.model.num_classes,
            implementation="xla",  # runs on every device
            features=features,
            folded=folded,
        ),
        weights=small,
        features=features,
        folded=folded,
        run_weights=weights,
        results=saved.results,
        folder=folder,
    )


def _smaller(model: Model, weights: Weights, *, compact: bool, fold: bool) -> tuple[Weights, Mapping[str, int], bool]:
    """The weights of the compacted and folded network, its features, and whether it is folded."""
    params, batch_stats = weights
    if compact:
        model, params, batch_stats, _ = compaction.compact(model, params, batch_stats)
    if fold and batch_stats:
        model, params, batch_stats, _ = compaction.fold_batch_norm(model, params, batch_stats)
    return Weights(params, batch_stats), model.features, model.folded


def describe(exported: ExportedNetwork, file_format: str, command: str = "") -> dict[str, Any]:
    """The metadata of a file of one of FORMATS, which `command` writes."""
    return {
        "schema": SCHEMA,
        "format": file_format,
        "name": exported.name,
        "network": network_of(exported),
        "input": {
            "name": "images",
            "dtype": "float32",
            "layout": "NHWC",
            "shape": ["batch", *exported.model.input_shape],
            "range": [0.0, 1.0],
            "normalisation": "none before the network: pixel / 255",
        },
        "output": {"name": "logits", "shape": ["batch", exported.model.num_classes], "classes": class_names(exported)},
        "sparsity": {
            "of_the_run": count_sparsity(exported.run_weights.params)["overall"],
            "of_this_file": count_sparsity(exported.weights.params)["overall"],
        },
        "accuracy": _accuracy(exported),
        "training": {
            key: exported.results.get(key)
            for key in ("config", "command", "versions", "device", "data", "seed", "start", "seconds")
        },
        "exported": {"rap_jax": versions()["rap-jax"], "versions": versions(), "command": command},
    }


def network_of(exported: ExportedNetwork) -> dict[str, Any]:
    """The arguments of `create_model` that make it again, its size, and the digest of its weights."""
    return {
        "name": exported.config.name,
        "width": exported.config.width,
        "initializer": exported.config.initializer,
        "input_shape": list(exported.model.input_shape),
        "num_classes": exported.model.num_classes,
        "features": dict(exported.features),
        "folded": exported.folded,
        "num_params": num_params(exported.weights.params),
        "num_params_of_the_run": num_params(exported.run_weights.params),
        "sha256": digest(exported.weights),
    }


def class_names(exported: ExportedNetwork) -> list[str]:
    """One for each logit; their numbers where the data have no names."""
    names = exported.results["data"].get("class_names") or range(exported.model.num_classes)
    return [str(name) for name in names]


def _accuracy(exported: ExportedNetwork) -> dict[str, Any]:
    """The test result of the run, and the evaluation by `launch.evaluate`, if there is one."""
    test: Mapping[str, Any] = exported.results.get("test") or {}
    return {
        "measured_on": _MEASURED_ON,
        "clean": test.get("natural_accuracy"),
        "clean_interval": test.get("natural_interval"),
        "robust": test.get("robust_accuracy"),
        "robust_interval": test.get("robust_interval"),
        "attack": test.get("attack"),
        "split": "test" if test else None,
        "num_images": test.get("num_examples"),
        "evaluation": _evaluation(exported),
    }


def _evaluation(exported: ExportedNetwork) -> dict[str, Any] | None:
    """The main numbers of RUN/evaluation/results.json, if it is there and of this network."""
    try:
        found = read_checked((exported.folder / "evaluation" / "results.json").read_text())
        same = found["network"].get("sha256") in (None, digest(exported.run_weights))
        kept = {key: found.get(key) for key in _MEASURES}
        about = {"attack": found["config"], "findings": found["findings"], "versions": found.get("versions")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, half written or of another version
        return None
    return kept | about if same else None
