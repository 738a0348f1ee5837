"""The network that the part `autoattack` attacks, by the names of PyTorch and as a function of JAX, and its images.

It is the published network of TRADES for MNIST, or the LeNet of a finished run. The file of the former is a `.npz` of
PyTorch's arrays: `feature_extractor.conv1` to `conv4`, `classifier.fc1` to `fc3`, each `.weight` and `.bias`; see
`benchmarks.pytorch.trades_network`. Zhang et al., 2019, https://arxiv.org/abs/1901.08573.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.parity.subject import lenet_state
from rap_jax.attacks.checks import LogitsFn
from rap_jax.config import require
from rap_jax.data.raw_files import parse_idx, unpack
from rap_jax.models.layers.pool import max_pool
from rap_jax.runs.network import load_network

EPSILON = 0.3  # radius, L-infinity
NUM_CLASSES = 10

_TEST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
_CONVOLUTIONS = tuple(f"feature_extractor.conv{number}" for number in range(1, 5))
_DENSE = tuple(f"classifier.fc{number}" for number in range(1, 4))
_TRADES_NAMES = {f"{layer}.{leaf}" for layer in (*_CONVOLUTIONS, *_DENSE) for leaf in ("weight", "bias")}

State = Mapping[str, np.ndarray]


class Attacked(NamedTuple):
    """What is attacked.

    Attributes:
      is_trades: whether it is the network of TRADES.
      state: weights by the names of PyTorch.
      logits_fn: images [N, 28, 28, 1] -> logits [N, 10].
      images: float32 in [0, 1], [N, 28, 28, 1].
      labels: int32 [N].
    """

    is_trades: bool
    state: dict[str, np.ndarray]
    logits_fn: LogitsFn
    images: np.ndarray
    labels: np.ndarray


def open_attacked(network: str, raw_data_dir: str, num_images: int) -> Attacked:
    """Reads the network, a `.npz` of TRADES or the folder of a run, and the first test images of MNIST.

    Raises:
      ValueError: one of them cannot be read.
    """
    images, labels = _test_images(raw_data_dir, num_images)
    if Path(network).is_file():
        state = read_trades(network)
        return Attacked(True, state, trades_logits(state), images, labels)
    saved = load_network(network)
    logits_fn = lambda x: saved.model.logits(saved.weights, x)
    return Attacked(False, lenet_state(saved.weights.params), logits_fn, images, labels)


def read_trades(path: str | Path) -> dict[str, np.ndarray]:
    """The weights of the network of TRADES, float32, by the names of PyTorch.

    Raises:
      ValueError: the file is another.
    """
    require(zipfile.is_zipfile(path), "trades", str(path), "a file .npz with the weights of the network of TRADES")
    try:
        with np.load(path, allow_pickle=False) as file:
            state = {name: np.asarray(file[name], np.float32) for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"trades {path} cannot be read ({error}); expected a file .npz.") from error
    if state.keys() != _TRADES_NAMES:
        found, names = ", ".join(sorted(state)), ", ".join(sorted(_TRADES_NAMES))
        raise ValueError(f"trades {path} holds {found or 'nothing'}; expected the arrays {names}.")
    return state


def trades_logits(state: State) -> LogitsFn:
    """images [N, 28, 28, 1] -> logits [N, 10] of the network of TRADES."""
    kernels = {name: jnp.asarray(state[f"{name}.weight"].T) for name in _DENSE}
    kernels |= {name: jnp.asarray(state[f"{name}.weight"].transpose(2, 3, 1, 0)) for name in _CONVOLUTIONS}
    biases = {name: jnp.asarray(state[f"{name}.bias"]) for name in (*_CONVOLUTIONS, *_DENSE)}

    def logits(images: jax.Array) -> jax.Array:
        hidden = images
        for number, name in enumerate(_CONVOLUTIONS, start=1):
            hidden = lax.conv_general_dilated(
                hidden, kernels[name], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            hidden = jax.nn.relu(hidden + biases[name].reshape(1, 1, 1, -1))
            hidden = max_pool(hidden) if number % 2 == 0 else hidden
        hidden = hidden.transpose(0, 3, 1, 2).reshape(len(hidden), -1)
        for name in _DENSE:
            hidden = hidden @ kernels[name] + biases[name].reshape(1, -1)
            hidden = hidden if name == _DENSE[-1] else jax.nn.relu(hidden)
        return hidden

    return logits


def _test_images(raw_data_dir: str, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Read from two of the official files, without TFDS, which a machine may lack and which prepares a copy first."""
    arrays = []
    for name in _TEST_FILES:
        path = Path(raw_data_dir) / name
        if not path.is_file():
            raise ValueError(f"raw_data_dir {raw_data_dir} lacks {name}; expected the official files of MNIST.")
        arrays.append(parse_idx(unpack(path.read_bytes()), name)[:num_images])
    images, labels = arrays
    return images[..., None].astype(np.float32) / np.float32(255), labels.astype(np.int32)
