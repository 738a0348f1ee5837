"""One projection and dual step of ADMM, and its share of an epoch: `python -m benchmarks.projection`.

For each structure it times the projection alone, and what a dual step adds to an update of the optimizer: the same
jitted update with `dual_step` True and False, in turn. An epoch has one dual step here (the recipes have at most two),
and as many training steps as the batches of 54,000 or 45,000 images.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.records import Column, Plot, markdown_table, write_records
from benchmarks.rows import ROWS
from benchmarks.turns import in_turn
from benchmarks.worker import Answer, Worker, clocked
from rap_jax.config import ModelConfig, PruneConfig
from rap_jax.models import create_model
from rap_jax.models.model import Params, num_params
from rap_jax.pruning.specs import project_tree
from rap_jax.training.optimizer import make_penalty, specs_from_config

Structure = Literal["irregular", "column", "filter"]
STRUCTURES: tuple[Structure, ...] = ("irregular", "column", "filter")
LAYER_SHAPE = (2500, 4000)
ABOUT = """\
Milliseconds of one projection on the sparsity sets, and of what a dual step (projection, z, u, rho) adds to an
optimizer update; its share of an epoch with one dual step: 54,000 images for LeNet (batch 64, K=40), 45,000 for
ResNet-18 (batch 128, K=2, the shortest epoch that is measured)."""
COLUMNS = (
    Column("weights", "weights", ",d"),
    Column("project_ms", "projection ms", ".2f"),
    Column("dual_step_ms", "dual step ms", ".2f"),
    Column("epoch_seconds", "epoch s", ".0f"),
    Column("epoch_share", "share of epoch", ".4%"),
)


class Case(NamedTuple):
    """Weights to project. Attributes: params; output_layer: its name; row, num_images: of the epoch, if any."""

    params: Params
    output_layer: str
    row: str | None = None
    num_images: int = 0


def make_cases() -> dict[str, Case]:
    """A small network, a large one, and one layer of ten million weights."""
    layer = jax.random.normal(jax.random.key(0), LAYER_SHAPE)
    return {
        "LeNet w=4": _case("lenet_w4", 54_000),
        "ResNet-18 w=16": _case("resnet18_w16", 45_000),
        "one dense layer": Case({"layer": {"kernel": layer, "bias": jnp.zeros(LAYER_SHAPE[1:])}}, "none"),
    }


def _case(row: str, num_images: int) -> Case:
    settings = ROWS[row]
    config = ModelConfig(settings.model, settings.width)
    model = create_model(config, input_shape=settings.input_shape, num_classes=10)
    return Case(jax.jit(model.init)(jax.random.key(0))[0], model.output_layer, row, num_images)


def measure(case: Case, structure: Structure, epoch_seconds: float | None, *, rounds: int) -> dict[str, Any]:
    """Times one structure on one case."""
    config = PruneConfig(structure=structure, sparsity=(("*", 0.5),))
    specs = specs_from_config(config, case.params, output_layer=case.output_layer)
    tx = make_penalty(case.params, config, specs)
    state = jax.jit(tx.init)(case.params)
    gradients = jax.tree.map(jnp.ones_like, case.params)
    update = jax.jit(lambda *arguments, dual_step: tx.update(*arguments, dual_step=dual_step))
    step = functools.partial(update, gradients, state, case.params)
    work = {
        "project": functools.partial(jax.jit(functools.partial(project_tree, specs)), case.params),
        "dual": functools.partial(step, dual_step=True),
        "plain": functools.partial(step, dual_step=False),
    }
    times = in_turn({name: _turn(run) for name, run in work.items()}, rounds=rounds)
    dual_step = times["dual"].median - times["plain"].median
    found = {"weights": num_params(case.params), "project_ms": 1e3 * times["project"].median}
    share = None if epoch_seconds is None else dual_step / epoch_seconds
    return found | {"dual_step_ms": 1e3 * dual_step, "epoch_seconds": epoch_seconds, "epoch_share": share}


def _turn(run: Callable[[], Any]) -> Callable[[], Answer]:
    """Enough runs for a turn of about 0.2 s; the first one compiles."""
    ready = lambda: jax.block_until_ready(run())
    ready()
    count = max(1, round(0.2 / clocked(ready)["seconds"]))
    return lambda: clocked(ready, count)


def seconds_of_epoch(case: Case) -> float | None:
    """Of the case's training steps, from a few of them."""
    if case.row is None:
        return None
    with tempfile.TemporaryDirectory() as cache:
        worker = Worker("benchmarks.step_worker", case.row, cache)
        worker.ask("steps", count=1)
        seconds = worker.ask("steps", count=3)["seconds"]
        worker.close()
    return seconds * (case.num_images // ROWS[case.row].batch_size)


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    rows = {}
    for name, case in make_cases().items():
        epoch_seconds = seconds_of_epoch(case)
        for structure in STRUCTURES:
            rows[f"{name}, {structure}"] = measure(case, structure, epoch_seconds, rounds=rounds)
    plot = Plot("dual_step_ms", "dual step, ms")
    write_records("projection", rows, about=ABOUT, columns=COLUMNS, order=list(rows), plot=plot)
    print(markdown_table(rows, COLUMNS))


if __name__ == "__main__":
    main()
