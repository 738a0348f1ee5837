"""The network of a finished run: saved once in the folder of the run, read back by later runs and programs.

saved = load_network("runs/lenet_mnist_mnist_seed0")
logits = saved.model.logits(saved.weights, images)"""

import stat
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from rap_jax._runtime.integrity import named_leaves, read_checked, unreadable
from rap_jax.config import ModelConfig
from rap_jax.models import Implementation, Model, create_model
from rap_jax.models.model import Weights
from rap_jax.runs import checkpoint

_FOLDER = "network"
_REMEDY = "to have it made again, move it and results.json away and call the command of that run."


class SavedNetwork(NamedTuple):
    """The network of a finished run."""

    config: ModelConfig  # architecture, width and initializer
    model: Model  # as pure functions
    weights: Weights  # at the end of the run
    # At the initialisation of the run, or of the run that it went on from; other runs may inherit them.
    initial: Weights
    results: dict[str, Any]  # content of results.json


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
    try:
        return stat.S_ISDIR((run_dir / _FOLDER / "0").stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):  # a missing permission does not mean that there is none
        return False


def load_network(
    run_dir: str | Path, sharding: Sharding | None = None, *, implementation: Implementation = "auto"
) -> SavedNetwork:
    """Reads the network of a finished run; changes nothing in its folder.

    Args:
      sharding: where its arrays shall lie; None for the first device.
      implementation: of its convolutions, see `create_model`.

    Raises:
      ValueError: the run has not finished, its files are missing or damaged, or a weight is NaN or infinite.
    """
    folder = Path(run_dir).expanduser()
    results = _read_results(folder)
    if not has_network(folder):
        raise ValueError(
            f"{folder / _FOLDER} is missing; copy it from where the run was made. To have it made again, move "
            f"results.json away and call the command of that run."
        )
    config = ModelConfig(*(results["model"][name] for name in ModelConfig.__dataclass_fields__))
    height, width, channels = results["data"]["image_shape"]
    classes = results["data"]["num_classes"]
    model = create_model(
        config, input_shape=(height, width, channels), num_classes=classes, implementation=implementation
    )
    weights = jax.eval_shape(model.init, jax.random.key(0))
    where = SingleDeviceSharding(jax.devices()[0]) if sharding is None else sharding
    manager = checkpoint.open_checkpoints(folder / _FOLDER, read_only=True)
    try:
        restored = checkpoint.restore_latest(manager, checkpoint.abstract_like(_Saved(weights, weights), where))
    except checkpoint.DamagedError as error:
        raise ValueError(f"{folder / _FOLDER} cannot be used; {_REMEDY} ({error})") from error
    finally:
        manager.close()
    assert restored is not None  # the folder of step 0 is there, and a damaged one has raised
    require_finite(restored.state, f"the network in {folder}")
    return SavedNetwork(config, model, restored.state.final, restored.state.initial, results)


def require_finite(weights: Any, what: str) -> None:
    """Refuses weights, or BatchNorm statistics, that no network can compute with: a tree of arrays.

    Raises:
      ValueError: one of them is NaN or infinite; names it.
    """
    for name, leaf in named_leaves(weights):
        num_bad = int((~np.isfinite(np.asarray(leaf))).sum())
        if num_bad:
            raise ValueError(
                f"{name} of {what} is NaN or infinite at {num_bad} of {leaf.size} places; expected finite numbers. "
                f"Take the network of another run."
            )


def _read_results(folder: Path) -> dict[str, Any]:
    try:
        results = read_checked((folder / "results.json").read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{folder} holds no results.json; expected the folder of a run that has finished.") from error
    except (OSError, ValueError) as error:
        remedy = "to have it made again, move it away and call the command of that run"
        raise unreadable(folder / "results.json", error, remedy) from error
    data, model = results.get("data"), results.get("model")
    named = isinstance(model, dict) and set(ModelConfig.__dataclass_fields__) <= model.keys()
    shaped = isinstance(data, dict) and len(data.get("image_shape", ())) == 3 and "num_classes" in data
    if not (named and shaped and {"dataset", "config"} <= results.keys()):
        raise ValueError(
            f"{folder / 'results.json'} is of another kind; expected the folder of a run that has finished."
        )
    return results
