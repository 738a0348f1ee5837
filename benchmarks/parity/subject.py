"""A network in both frameworks and the images that it is attacked on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rap_jax.attacks.checks import LogitsFn
from rap_jax.config import DataConfig
from rap_jax.data import load_dataset, to_unit
from rap_jax.models import Implementation, Model
from rap_jax.models.model import Weights
from rap_jax.runs.network import load_network


class Subject(NamedTuple):
    """What is attacked.

    Attributes:
      model, weights: of rap_jax.
      state: the weights by the names of `benchmarks.pytorch.networks`.
      images: float32 in [0, 1], [N, H, W, C].
      labels: int32 [N].
    """

    model: Model
    weights: Weights
    state: dict[str, np.ndarray]
    images: np.ndarray
    labels: np.ndarray

    @property
    def logits_fn(self) -> LogitsFn:
        """images [N, H, W, C] -> logits [N, K]."""
        return lambda images: self.model.logits(self.weights, images)

    @property
    def in_float64(self) -> "Subject":
        """The same in float64, for use under `jax.enable_x64`."""
        as_float64 = lambda array: np.asarray(array, np.float64)
        weights, state = jax.tree.map(as_float64, (self.weights, self.state))
        return self._replace(weights=weights, state=state, images=as_float64(self.images))


def load_subject(
    run: Path, *, raw_data_dir: str | None, data_dir: str, num_images: int, implementation: Implementation = "auto"
) -> Subject:
    """The LeNet of a finished run and the first images of its test split.

    Args:
      run: its folder.
      raw_data_dir: official files of the data set.
      data_dir: where the prepared copy of it is, or will be.
      num_images: how many.
      implementation: of the convolutions.

    Raises:
      ValueError: the run has not finished, or its network is no LeNet; the data cannot be read.
    """
    saved = load_network(run, implementation=implementation)
    if saved.config.name != "lenet_mnist":
        raise ValueError(f"{run} holds a network {saved.config.name}; expected lenet_mnist.")
    data = DataConfig(saved.results["dataset"], data_dir=data_dir, raw_data_dir=raw_data_dir)
    test = load_dataset(data, seed=saved.results["seed"]).test
    return Subject(
        model=saved.model,
        weights=saved.weights,
        state=lenet_state(saved.weights.params),
        images=np.asarray(to_unit(test.images[:num_images])),
        labels=np.asarray(test.labels[:num_images], np.int32),
    )


def lenet_state(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Weights of rap_jax's LeNet by PyTorch's names: kernels [H, W, in, out] and [in, out] with axes turned round.

    The input of fc1 goes from [height, width, channel] to [channel, height, width].
    """
    kernels = {name: np.asarray(layer["kernel"]) for name, layer in params.items()}
    channels, units = kernels["conv2"].shape[3], kernels["fc1"].shape[1]
    side = round((kernels["fc1"].shape[0] / channels) ** 0.5)
    kernels["fc1"] = kernels["fc1"].reshape(side, side, channels, units).transpose(2, 0, 1, 3).reshape(-1, units)
    state = {f"{name}.bias": np.asarray(layer["bias"]) for name, layer in params.items()}
    for name, kernel in kernels.items():
        moved = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        state[f"{name}.weight"] = np.ascontiguousarray(moved)
    return state
