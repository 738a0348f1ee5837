"""A network as an `.npz` file: plain arrays under the names of the layers, nothing but numpy to read them.

    conv1/kernel                                    [height, width, in, out], or [in, out] of a dense layer
    conv1/bias, conv1/scale, conv1/shift            [out]
    batch_stats/conv1/mean, batch_stats/conv1/var   [out]
    metadata                                        one string, JSON

The arrays are compressed, so zeros make the file small. They do not make the network run faster: read back, it is the
same dense network with its zeros.

network = read_npz("network.npz")
logits = network.model.logits(network.weights, images)
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rap_jax._runtime.integrity import as_npz, named_leaves
from rap_jax.config import ModelConfig
from rap_jax.models import Model, create_model
from rap_jax.models.model import Weights

_METADATA = "metadata"
_DAMAGES = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)


class NpzNetwork(NamedTuple):
    """The content of a file."""

    model: Model  # as pure functions
    weights: Weights  # of that model, numpy arrays
    metadata: dict[str, Any]  # see `exported_network.describe`


def npz_bytes(weights: Weights, metadata: Mapping[str, Any]) -> bytes:
    """The file."""
    return as_npz(_by_name(weights) | {_METADATA: np.array(json.dumps(metadata))}, compressed=True)


def read_npz(path: str | Path) -> NpzNetwork:
    """Reads a file that `launch.export --format=npz` has written. Nothing in it is run.

    Raises:
      ValueError: there is no such file, it is damaged, or it holds something else.
    """
    try:
        with Path(path).expanduser().open("rb") as file, np.load(file, allow_pickle=False) as members:
            metadata: dict[str, Any] = json.loads(str(members[_METADATA]))
            arrays = {name: members[name] for name in members if name != _METADATA}
        model = _model(metadata["network"])
    except _DAMAGES as error:
        raise ValueError(
            f"{path} cannot be read ({error}); expected a file of python -m launch.export --format=npz."
        ) from error
    return NpzNetwork(model, _in_place(path, model, arrays), metadata)


def _by_name(weights: Weights) -> dict[str, np.ndarray]:
    """Names as conv1/kernel; statistics keep their first word, batch_stats, as their layers have the same names."""
    return {path.removeprefix("params/"): leaf for path, leaf in named_leaves(weights)}


def _model(network: Mapping[str, Any]) -> Model:
    height, width, channels = network["input_shape"]
    return create_model(
        ModelConfig(*(network[name] for name in ModelConfig.__dataclass_fields__)),
        input_shape=(height, width, channels),
        num_classes=network["num_classes"],
        implementation="xla",
        features=network["features"],
        folded=network["folded"],
    )


def _in_place(path: str | Path, model: Model, arrays: Mapping[str, np.ndarray]) -> Weights:
    """The arrays as the trees of the model."""
    expected = jax.eval_shape(model.init, jax.random.key(0))
    shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in _by_name(expected).items()}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if shapes != found:
        wrong = sorted(set(shapes.items()) ^ set(found.items()), key=str)[0]
        raise ValueError(
            f"{path} does not hold the weights of its network: {wrong[0]} is missing, surplus or of another shape; "
            f"export the run again."
        )
    weights: Weights = jax.tree.unflatten(jax.tree.structure(expected), [arrays[name] for name in shapes])
    return weights
