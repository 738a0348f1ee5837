"""How long a checkpoint holds up the training: `python -m benchmarks.checkpoint`.

The state of the ADMM stage (weights, the best ones so far, Adam's moments, z and u) of two large networks. A save waits
until the files are on disk, so the loop is held up for all of it.
"""

import argparse
import itertools
import statistics
import tempfile
from typing import Any

import jax

from benchmarks.records import Column, Plot, markdown_table, write_records
from benchmarks.rows import ROWS
from benchmarks.worker import clocked
from rap_jax._runtime.integrity import digest
from rap_jax.config import ModelConfig, OptimizerConfig, OutputConfig, PruneConfig
from rap_jax.models import create_model
from rap_jax.runs import checkpoint
from rap_jax.training.optimizer import learning_rate_schedule, make_optimizer, make_penalty, specs_from_config
from rap_jax.training.state import StageState, init_stage_state

NETWORKS = {"LeNet w=16": "lenet_w16", "ResNet-18 w=16": "resnet18_w16"}
ABOUT = """\
Seconds of one checkpoint of the ADMM stage, median of several, which hold up the training; of which the digest; and the
share of the time of a run that saves every 30 seconds, as is the default."""
COLUMNS = (
    Column("megabytes", "MB", ".0f"),
    Column("save_seconds", "save s", ".3f"),
    Column("digest_seconds", "of which digest s", ".3f"),
    Column("share", "share of the time", ".2%"),
)


def make_state(row: str) -> StageState:
    """The fresh state of an ADMM stage."""
    settings = ROWS[row]
    config = ModelConfig(settings.model, settings.width)
    model = create_model(config, input_shape=settings.input_shape, num_classes=10)
    weights = jax.jit(model.init)(jax.random.key(0))
    prune = PruneConfig()
    specs = specs_from_config(prune, weights.params, output_layer=model.output_layer)
    optimizer = OptimizerConfig(schedule="constant")
    learning_rate = learning_rate_schedule(optimizer, steps_per_epoch=1, num_steps=1)
    tx = make_optimizer(optimizer, learning_rate, penalty=make_penalty(weights.params, prune, specs))
    return jax.jit(lambda start: init_stage_state(start, tx))(weights)


def measure(state: StageState, *, rounds: int) -> dict[str, Any]:
    """Saves the state some times, each time as another step of the same run."""
    with tempfile.TemporaryDirectory() as folder:
        manager = checkpoint.open_checkpoints(folder)
        steps = itertools.count()
        save = lambda: checkpoint.save(manager, next(steps), state, {"seconds": 0.0})
        save()
        saves = [clocked(save)["seconds"] for _ in range(rounds)]
        manager.close()
    digests = [clocked(lambda: digest(state))["seconds"] for _ in range(rounds)]
    seconds = statistics.median(saves)
    return {
        "megabytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6,
        "save_seconds": seconds,
        "digest_seconds": statistics.median(digests),
        "share": seconds / (seconds + OutputConfig().checkpoint_every_seconds),
    }


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rows = {name: measure(make_state(row), rounds=rounds) for name, row in NETWORKS.items()}
    plot = Plot("save_seconds", "one checkpoint, seconds")
    write_records("checkpoint", rows, about=ABOUT, columns=COLUMNS, order=list(rows), plot=plot)
    print(markdown_table(rows, COLUMNS))


if __name__ == "__main__":
    main()
