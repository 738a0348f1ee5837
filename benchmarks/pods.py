"""The ADMM step on TPU slices that are not there: `python -m benchmarks.pods`.

    python -m benchmarks.pods --only='LeNet w=16, v5e:2x2'      rows whose names begin so
    python -m benchmarks.pods --again                           rows that are done already as well

Compiled by the TPU compiler and estimated, never run. Needs the extra `tpu_aot`; a row takes minutes, and each is kept
when it is done.
"""

import argparse
import copy
import json
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from benchmarks.records import RESULTS, Column, markdown_table, write_records
from launch.configs import config_from_flags
from launch.flagfiles import expand_flagfiles
from rap_jax._runtime.mesh import make_mesh
from rap_jax._runtime.topology import target_devices
from rap_jax.config import ComputeConfig, RunConfig
from rap_jax.data import Dataset, Split
from rap_jax.training.estimate import count_kinds
from rap_jax.training.forecast import forecast

BATCH_SIZE = 128  # of each chip
NUM_SHARDS = 4
TOPOLOGIES = ("1x1", "2x2", "4x4", "8x8", "16x16")
ABOUT = f"""\
The ADMM step on slices of TPU v5e, compiled by the TPU compiler (libtpu) on a machine without TPUs and estimated.
Nothing of this was run. Networks of width 16 in bfloat16 with the paper's recipes (LeNet: PGD-40, ResNet-18: PGD-10),
{BATCH_SIZE} images for each chip, so that a slice of twice as many chips has twice the work.

- Shards: devices that share the state (`--num_model_shards`). Memory: of a chip, with the data set, program and code,
  of 16,000 MB; state: of weights, z, u, moments and the kept model.
- Sent: by a chip in a step, in a ring of the chips that take part. In the attack: collectives that its loop has.
- Cost model: cycles that the compiler expects of each operation, loops counted in full, and the collectives as rings
  with nothing hidden behind computation (`rap_jax/training/estimate.py`). The compiler gives no cycles for
  some operations, such as the backward pass of max-pooling. Roofline: the products at the chip's peak, or the bytes at
  its bandwidth, whichever takes longer, and the same collectives.
- Efficiency: images per second and chip, against those of one chip, by the cost model; bar 90% up to 256 chips."""
COLUMNS = (
    Column("num_shards", "shards"),
    Column("memory", "memory MB", ",.0f"),
    Column("state", "state MB", ",.1f"),
    Column("sent", "sent MB", ",.1f"),
    Column("in_attack", "in the attack"),
    Column("collectives", "collectives"),
    Column("cost_model", "cost model ms", ",.2f"),
    Column("roofline", "roofline ms", ",.2f"),
    Column("images_per_second", "images/s", ",.0f"),
    Column("peak_share", "share of peak", ".1%"),
    Column("efficiency", "efficiency", ".1%"),
)


class Network(NamedTuple):
    """A recipe, and the size of its data."""

    recipe: str
    image_shape: tuple[int, int, int]
    num_images: int


NETWORKS = {
    "LeNet w=16": Network("lenet_mnist_paper", (28, 28, 1), 60_000),
    "ResNet-18 w=16": Network("resnet18_cifar10", (32, 32, 3), 50_000),
}


class Row(NamedTuple):
    """A network on a slice."""

    network: str
    topology: str
    num_shards: int

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return f"{self.network}, v5e:{self.topology}" + (f", {self.num_shards} shards" if self.num_shards > 1 else "")


ROWS = tuple(
    Row(network, topology, shards)
    for network in NETWORKS
    for shards in (1, NUM_SHARDS)
    for topology in TOPOLOGIES
    if shards == 1 or topology != "1x1"
)


def measure(row: Row) -> dict[str, Any]:
    """Compiles the step; the keys of the result are those of `COLUMNS` but efficiency."""
    network = NETWORKS[row.network]
    mesh = make_mesh(target_devices(f"tpu:v5e:{row.topology}"), num_model_shards=row.num_shards)
    config = make_config(network, batch_size=BATCH_SIZE * mesh.size)
    compute = ComputeConfig(num_model_shards=row.num_shards)
    (stage,) = forecast(config, make_dataset(network), mesh, compute, with_estimate=True).stages
    step = stage.estimate
    if step is None or step.cost_model is None:
        raise ValueError(f"{row.name} has no estimate; expected one, from a TPU program.")
    return {
        "num_shards": row.num_shards,
        "num_chips": mesh.size,
        "memory": step.memory / 1e6,
        "state": stage.state / 1e6,
        "sent": step.sent / 1e6,
        "in_attack": sum(one.in_loop for one in step.collectives),
        "collectives": ", ".join(f"{number} {kind}" for kind, number in count_kinds(step.collectives).items()),
        "cost_model": 1e3 * step.cost_model,
        "roofline": None if step.roofline is None else 1e3 * step.roofline,
        "images_per_second": config.batch_size / step.cost_model,
        "peak_share": step.peak_share,
    }


def make_config(network: Network, *, batch_size: int) -> RunConfig:
    """The recipe in bfloat16, with its ADMM stage alone."""
    values = copy.deepcopy(flags.FLAGS)
    values.unparse_flags()
    values(
        expand_flagfiles(
            [
                "pods",
                f"--flagfile={network.recipe}",
                "--compute_dtype=bfloat16",
                f"--batch_size={batch_size}",
                "--retrain_epochs=0",
                "--pretrain_epochs=0",
            ]
        )
    )
    return config_from_flags(values)


def make_dataset(network: Network) -> Dataset:
    """Its shapes; nothing looks at the images."""
    blank = lambda number: Split(np.zeros((number, *network.image_shape), np.uint8), np.zeros(number, np.int32))
    held_out = network.num_images // 10
    return Dataset("shapes", blank(network.num_images - held_out), blank(held_out), blank(10_000), 10, "")


def with_efficiency(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows, with images per second and chip over those of one chip."""
    speed = lambda values: values["images_per_second"] / values["num_chips"]
    one_chip = {network: rows.get(Row(network, "1x1", 1).name) for network in NETWORKS}
    found = dict[str, dict[str, Any]]()
    for name, values in rows.items():
        alone = one_chip[name.split(", ")[0]]
        found[name] = values | ({} if alone is None else {"efficiency": speed(values) / speed(alone)})
    return found


def main() -> None:
    """Compiles the rows that are asked for and not done yet, and writes each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose names begin so")
    parser.add_argument("--again", action="store_true", help="rows that are done already as well")
    given = parser.parse_args()
    names = [row.name for row in ROWS]
    wanted = [row for row in ROWS if row.name.startswith(given.only)]
    if not wanted:
        parser.error(f"--only={given.only!r} is the beginning of no row; the rows are {', '.join(names)}.")
    path = RESULTS / "pods.json"
    for row in wanted:
        done = json.loads(path.read_text())["rows"] if path.exists() else {}
        if row.name in done and not given.again:
            continue
        print(f"{row.name} ...", flush=True)
        found = with_efficiency(done | {row.name: measure(row)})
        write_records("pods", {row.name: found[row.name]}, about=ABOUT, columns=COLUMNS, order=names)
    print(markdown_table(json.loads(path.read_text())["rows"], COLUMNS))


if __name__ == "__main__":
    main()
