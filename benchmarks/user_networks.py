"""Networks that this package did not make, by XLA's convolutions, in `fast_on_cpu`, and in PyTorch.

    python -m benchmarks.user_networks --trades=trades_mnist.npz --raw_data_dir=MNIST
    python -m benchmarks.user_networks --only=resnet18_16

`pgd` is 5 steps on 64 images; `auto_attack` the version `standard` on a few, against the official code. Programs are
compiled before. Needs the extra `bench`, and for TRADES its weights by their names in PyTorch.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.records import Column, Rows, markdown_table, write_records
from benchmarks.turns import in_turn
from benchmarks.user_networks_jax import CHANNELS, ResNet18, state_of
from benchmarks.worker import Answer, Worker
from rap_jax.config import DataConfig
from rap_jax.data import load_dataset, to_unit

PGD_IMAGES = 64
ABOUT = """\
Networks of others, in turn in processes of their own; median of the rounds, seconds. The last column says
how busy the machine was with other programs: where it was, trust the ratios in processor time.

- pgd: 5 steps of PGD on 64 images.
- auto_attack: AutoAttack standard as called by default against the official code (pyautoattack); compiled before.
- trades: the MNIST network of TRADES with its authors' weights in `lax.conv_general_dilated`, test images of MNIST,
  L-infinity, radius 0.3.
- resnet18_N: ResNet-18 of N to 8 N channels in layers of Flax, BatchNorm in evaluation mode, random weights and images,
  labelled as the network answers; radius 1e-6, so that no attack breaks an image and all are run to their end."""
COLUMNS = (
    Column("num_images", "images"),
    Column("xla", "XLA's convolutions", ".2f"),
    Column("fast_on_cpu", "fast_on_cpu", ".2f"),
    Column("pytorch", "PyTorch", ".2f"),
    Column("over_xla", "XLA / fast", ".2f"),
    Column("over_pytorch", "PyTorch / fast", ".2f"),
    Column("processor_over_xla", "XLA / fast, processor time", ".2f"),
    Column("processor_over_pytorch", "PyTorch / fast, processor time", ".2f"),
    Column("robust", "robust: rap_jax, official"),
    Column("other_cores", "cores used by others", ".1f"),
)
# Threads that wait do not spin: beside other programs that would be most of their time.
_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
CASES = ("trades", *(f"resnet18_{channels}" for channels in CHANNELS))


def write_case(case: str, path: Path, arguments: argparse.Namespace) -> None:
    """Weights, images and labels of a case, as both sides read them."""
    if case == "trades":
        with np.load(arguments.trades, allow_pickle=False) as file:
            state = {name: file[name] for name in file.files}
        test = load_dataset(DataConfig("mnist", raw_data_dir=arguments.raw_data_dir), seed=0).test
        images, labels = np.asarray(to_unit(test.images[:PGD_IMAGES])), test.labels[:PGD_IMAGES]
    else:
        network = ResNet18(int(case.rpartition("_")[2]))
        images = np.random.default_rng(0).random((PGD_IMAGES, 32, 32, 3), np.float32)
        variables = jax.jit(network.init)(jax.random.key(0), images)
        state, labels = state_of(variables), np.asarray(jax.jit(network.apply)(variables, images)).argmax(1)
    named: dict[str, Any] = {f"state/{name}": value for name, value in state.items()}
    np.savez(path, images=images, labels=labels, epsilon=0.3 if case == "trades" else 1e-6, **named)


def measure(case: str, arguments: argparse.Namespace) -> Rows:
    """Both rows of a case."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        write_case(case, path, arguments)
        ours = Worker("benchmarks.user_networks_jax", case, str(path), str(Path(folder) / "compiled"))
        theirs = Worker("benchmarks.pytorch.user_networks_worker", case, str(path), environment=_PASSIVE)
        workers = {"xla": (ours, {"fast": False}), "fast_on_cpu": (ours, {"fast": True}), "pytorch": (theirs, {})}
        rows = {f"{case}/pgd": _row("pgd", workers, PGD_IMAGES, arguments)}
        if arguments.num_images:
            attacked = {name: worker for name, worker in workers.items() if name != "xla" or arguments.with_xla}
            rows[f"{case}/auto_attack"] = _row("auto_attack", attacked, arguments.num_images, arguments)
        ours.close()
        theirs.close()
    return rows


def _row(
    work: str, workers: dict[str, tuple[Worker, dict[str, Any]]], count: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    robust, processor = dict[str, str](), dict[str, list[float]]()

    def turn(name: str) -> Answer:
        worker, settings = workers[name]
        answer = worker.ask(work, count=count, **settings)
        robust[name] = answer.get("robust", "")
        processor.setdefault(name, []).append(answer["processor_seconds"])
        print(name, work, answer, file=sys.stderr, flush=True)
        return answer

    for name in workers if work == "pgd" else [name for name in workers if name != "pytorch"]:
        turn(name)  # compiles
    ways: dict[str, Callable[[], Answer]] = {name: lambda name=name: turn(name) for name in workers}  # type: ignore[misc]
    rounds = arguments.rounds if work == "pgd" else arguments.attack_rounds
    times = in_turn(ways, rounds=rounds, max_tries=1)
    row: dict[str, Any] = {name: side.median for name, side in times.items()}
    row |= {f"{name}_seconds": side.seconds for name, side in times.items()}
    used = {name: statistics.median(seconds[-rounds:]) for name, seconds in processor.items()}
    row |= {f"{name}_processor": seconds for name, seconds in used.items()}
    row["processor_over_xla"] = used["xla"] / used["fast_on_cpu"] if "xla" in used else None
    row["processor_over_pytorch"] = used["pytorch"] / used["fast_on_cpu"]
    row["over_xla"] = row["xla"] / row["fast_on_cpu"] if "xla" in row else None
    row["over_pytorch"] = row["pytorch"] / row["fast_on_cpu"]
    row["robust"] = ", ".join(filter(None, (robust["fast_on_cpu"], robust["pytorch"])))
    row["other_cores"] = max(max(side.other_cores) for side in times.values())
    return row | {"num_images": count}


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--trades", default="../shared/data/networks/trades_mnist.npz", help="weights of TRADES")
    parser.add_argument("--raw_data_dir", default="../shared/data/mnist", help="official files of MNIST")
    parser.add_argument("--rounds", type=int, default=5, help="of PGD")
    parser.add_argument("--attack_rounds", type=int, default=3, help="of AutoAttack")
    parser.add_argument("--num_images", type=int, default=16, help="of AutoAttack; 0 leaves it out")
    parser.add_argument("--with_xla", action="store_true", help="AutoAttack with XLA's convolutions, too")
    arguments = parser.parse_args()
    rows: Rows = {}
    for case in [arguments.only] if arguments.only else CASES:
        rows |= measure(case, arguments)
        order = [f"{name}/{work}" for name in CASES for work in ("pgd", "auto_attack")]
        write_records("user_networks", rows, about=ABOUT, columns=COLUMNS, order=order)
        print(markdown_table(rows, COLUMNS), flush=True)


if __name__ == "__main__":
    main()
