"""The network that a run ended with, kept in its folder: saved once, read back by any later run or program.

saved = load_network("runs/lenet_mnist_mnist_seed0")
logits, _ = saved.model.apply(*saved.weights, images, False)
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Sharding, SingleDeviceSharding

from rap_jax import checkpoint
from rap_jax.checked_json import read_checked
from rap_jax.config import ModelConfig
from rap_jax.models import Model, create_model
from rap_jax.state import Weights

_FOLDER = "network"
_REMEDY = "to have it made again, delete it and results.json and call the command of that run."


class SavedNetwork(NamedTuple):
    """A network with its weights.

    Attributes:
      model: as pure functions.
      weights: those that the run ended with.
      initial: those that it, or the run that it went on from, was initialised with; other runs may inherit them.
      results: what results.json of the run holds.
    """

    model: Model
    weights: Weights
    initial: Weights
    results: dict[str, Any]


class _Saved(NamedTuple):
    final: Weights
    initial: Weights


def save_network(run_dir: Path, weights: Weights, *, initial: Weights) -> None:
    """Writes final and initial weights with a digest into `run_dir`/network, unless they are there already."""
    manager = checkpoint.open_checkpoints(run_dir / _FOLDER)
    checkpoint.save(manager, 0, _Saved(weights, initial), {})
    manager.close()


def has_network(run_dir: Path) -> bool:
    """Whether there is a network in a run's folder: results that were copied may have come without."""
    return (run_dir / _FOLDER / "0").is_dir()


def load_network(run_dir: str | Path, sharding: Sharding | None = None) -> SavedNetwork:
    """Reads the network of a finished run; changes nothing in its folder.

    Args:
      run_dir: the run's folder.
      sharding: where its arrays shall lie; None for the first device.

    Raises:
      ValueError: the run has not finished, or its files are missing or damaged.
    """
    folder = Path(run_dir).expanduser()
    results = _read_results(folder)
    if not has_network(folder):
        raise ValueError(f"{folder / _FOLDER} is missing; {_REMEDY}")
    config = ModelConfig(*(results["model"][name] for name in ModelConfig.__dataclass_fields__))
    height, width, channels = results["data"]["image_shape"]
    classes = results["data"]["num_classes"]
    model = create_model(config, input_shape=(height, width, channels), num_classes=classes)
    weights = jax.eval_shape(lambda key: Weights(*model.init(key)), jax.random.key(0))
    where = SingleDeviceSharding(jax.devices()[0]) if sharding is None else sharding
    manager = checkpoint.open_checkpoints(folder / _FOLDER, read_only=True)
    try:
        restored = checkpoint.restore_latest(manager, checkpoint.abstract_like(_Saved(weights, weights), where))
    except ValueError as error:
        raise ValueError(f"{folder / _FOLDER} cannot be used; {_REMEDY} ({error})") from error
    finally:
        manager.close()
    assert restored is not None  # the folder of step 0 is there, and a damaged one has raised
    return SavedNetwork(model, restored.state.final, restored.state.initial, results)


def _read_results(folder: Path) -> dict[str, Any]:
    try:
        results = read_checked((folder / "results.json").read_text())
        shape, _ = results["data"]["image_shape"], results["data"]["num_classes"]
        if len(shape) != 3 or not {"model", "dataset", "config"} <= results.keys():
            raise ValueError("it is incomplete")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{folder} holds no results.json; expected the folder of a run that has finished.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "expected what a finished run writes; call that run again with the file deleted"
        raise ValueError(f"{folder / 'results.json'} cannot be used ({error!r}); {hint}.") from error
    return results
