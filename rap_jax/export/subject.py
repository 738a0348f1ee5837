"""The network that is exported: that of a finished run, made as small as it can be without changing its function.

subject = open_subject("runs/lenet_mnist_mnist_seed0")
logits = subject.logits_fn(images)
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from rap_jax import compaction
from rap_jax.config import ModelConfig
from rap_jax.models import Model, create_model
from rap_jax.saved_network import load_network
from rap_jax.state import Weights


class Subject(NamedTuple):
    """A network in the form in which it is exported.

    Attributes:
      name: of the run's folder.
      config: what it is.
      model: as pure functions, in the form that every device computes.
      weights: of that model, numpy arrays.
      features: layer -> number of outputs, of the layers that have lost some.
      folded: whether BatchNorm is part of its neighbours.
      whole: weights of the run's network, with the zeros.
      results: what results.json of the run holds.
      folder: of the run.
    """

    name: str
    config: ModelConfig
    model: Model
    weights: Weights
    features: Mapping[str, int]
    folded: bool
    whole: Weights
    results: dict[str, Any]
    folder: Path

    @property
    def logits_fn(self) -> Callable[[jax.Array], jax.Array]:
        """Images [N, H, W, C] in [0, 1] -> logits [N, K], in evaluation mode, the weights inside."""
        return lambda images: self.model.apply(*self.weights, images, False)[0]


def open_subject(run_dir: str | Path, *, compact: bool = True, fold: bool = True) -> Subject:
    """Reads the network of a finished run.

    Args:
      run_dir: the run's folder.
      compact: without the outputs that count for nothing.
      fold: BatchNorm as part of its neighbours.

    Raises:
      ValueError: the run has not finished, or its files are missing or damaged.
    """
    folder = Path(run_dir).expanduser()
    saved = load_network(folder)
    config = ModelConfig(*(saved.results["model"][name] for name in ModelConfig.__dataclass_fields__))
    weights: Weights = jax.device_get(saved.weights)
    small, features, folded = _smaller(saved.model, weights, compact=compact, fold=fold)
    return Subject(
        name=folder.resolve().name,
        config=config,
        model=rebuild(config, saved.model.input_shape, saved.model.num_classes, features, folded=folded),
        weights=small,
        features=features,
        folded=folded,
        whole=weights,
        results=saved.results,
        folder=folder,
    )


def rebuild(
    config: ModelConfig,
    input_shape: tuple[int, int, int],
    num_classes: int,
    features: Mapping[str, int] = MappingProxyType({}),
    *,
    folded: bool = False,
) -> Model:
    """The model of a subject, computed by XLA's own operations: right for every device.

    Raises:
      ValueError: a network that cannot be, see `create_model`.
    """
    return create_model(
        config,
        input_shape=input_shape,
        num_classes=num_classes,
        implementation="xla",
        features=features,
        folded=folded,
    )


def _smaller(model: Model, weights: Weights, *, compact: bool, fold: bool) -> tuple[Weights, Mapping[str, int], bool]:
    """The weights of the smaller network, its features, whether it is folded. The only place that makes it smaller."""
    params, batch_stats = weights
    if compact:
        model, params, batch_stats, _ = compaction.compact(model, params, batch_stats)
    if fold and batch_stats:
        model, params, batch_stats, _ = compaction.fold_batch_norm(model, params, batch_stats)
    return Weights(params, batch_stats), model.features, model.folded
