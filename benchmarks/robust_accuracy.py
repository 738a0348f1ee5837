r"""One network a row: robust accuracy by the official AutoAttack, by each version of this package, and certified.

    python -m benchmarks.robust_accuracy --raw_data_dir=MNIST --network="w=1"=FILE.npz --trades=trades_mnist.npz

A network is a LeNet of `launch.export --format=npz`; `--trades` takes the weights of the authors of TRADES by their
names in PyTorch. What is done stays in `--work_dir`, and a run that was killed goes on from there. `--official` needs
the extra `bench`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import rap_jax as rap
from benchmarks.parity.kept import Answer, Kept
from benchmarks.parity.subject import lenet_state
from benchmarks.records import Column, markdown_table, write_records
from benchmarks.trades_network import trades_network
from benchmarks.worker import Worker
from rap_jax._runtime.devices import start_cpu_devices
from rap_jax.config import DataConfig
from rap_jax.data import load_dataset, to_unit
from rap_jax.evaluation.accuracy import wilson_interval
from rap_jax.evaluation.auto_attack import AutoAttackResult
from rap_jax.evaluation.certificates import Certificates
from rap_jax.export import read_npz

NAME = "robust_accuracy"
THREAT_MODEL = rap.ThreatModel("linf", 0.3)
ABOUT = """\
Percent of the first test images of MNIST, L-infinity, radius 0.3. The robust accuracy of a network lies between
certified (CROWN after quicker bounds) and strong.

- official: AutoAttack standard of pyautoattack, with its own random numbers.
- strong begins with the attacks of standard, so one run gives both. Search: what random search broke after the
  gradients had failed, under standard.
- s: seconds of the attacks. The machine had other work; benchmarks/autoattack_parity.py compares speeds."""
COLUMNS = (
    Column("num_images", "images"),
    Column("parameters", "parameters", ",d"),
    Column("clean", "clean", ".1f"),
    Column("official", "official", ".1f"),
    Column("standard", "standard", ".1f"),
    Column("quick", "quick", ".1f"),
    Column("strong", "strong", ".1f"),
    Column("certified", "certified", ".1f"),
    Column("search", "search", ".1f"),
    Column("interval", "strong, 95%"),
    Column("official_seconds", "official s", ".0f"),
    Column("standard_seconds", "standard s", ".0f"),
    Column("quick_seconds", "quick s", ".0f"),
    Column("strong_seconds", "strong s", ".0f"),
)


class Network(NamedTuple):
    """What is attacked, in both frameworks."""

    logits_fn: Callable[[jax.Array], jax.Array]  # images [N, 28, 28, 1] -> logits [N, 10]
    state: dict[str, np.ndarray]  # its weights by their names in PyTorch


def open_network(path: Path) -> Network:
    """A LeNet of this package, or the network of TRADES."""
    with np.load(path, allow_pickle=False) as file:
        if "feature_extractor.conv1.weight" in file.files:
            return Network(trades_network(path), {name: file[name] for name in file.files})
    found = read_npz(path)
    return Network(lambda images: found.model.logits(found.weights, images), lenet_state(found.weights.params))


def official(network: Network, images: np.ndarray, labels: np.ndarray) -> Answer:
    """AutoAttack of pyautoattack, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        state: dict[str, Any] = {f"state/{name}": value for name, value in network.state.items()}
        np.savez(path, images=images, labels=labels, **state)
        # Threads that wait do not spin: beside other programs that would be most of their time.
        passive = {"OMP_WAIT_POLICY": "PASSIVE"}
        arguments = ("benchmarks.pytorch.autoattack_worker", str(path), str(THREAT_MODEL.epsilon))
        worker = Worker(*arguments, environment=passive)
        found = worker.ask("attack", part="standard", seed=0)
        worker.close()
    return {"official": 100 * found["robust"], "official_seconds": found["seconds"], "official_flags": found["flags"]}


def attacked(network: Network, images: np.ndarray, labels: np.ndarray, version: Any, state_path: Path) -> Answer:
    """A version of this package's AutoAttack."""
    found: AutoAttackResult = rap.auto_attack(
        network.logits_fn, images, labels, threat_model=THREAT_MODEL, key=jax.random.key(0), version=version,
        state_path=state_path, diagnostics=False,
    )  # fmt: skip
    seconds = [component.seconds for component in found.components]
    answer: Answer = {version: 100 * found.robust_accuracy, f"{version}_seconds": sum(seconds)}
    answer |= {"clean": 100 * found.clean_accuracy, "broken_by": found.broken_by.tolist()}
    if version == "strong":
        low, high = wilson_interval(int(found.robust.sum()), len(labels))
        standard = [part.broken for part in found.components[: found.num_standard] if part.random_search]
        answer |= {"standard": 100 * (found.standard_accuracy or 0.0), "search": 100 * sum(standard) / len(labels)}
        answer |= {"standard_seconds": sum(seconds[: found.num_standard]), "interval": f"{low:.1%} to {high:.1%}"}
    return answer


def certified(network: Network, images: np.ndarray, labels: np.ndarray) -> Answer:
    """Certificates of all images."""
    began = time.monotonic()
    found: Certificates = rap.certify(network.logits_fn, images, labels, threat_model=THREAT_MODEL, method="crown")
    proved = [int(number) for number in np.flatnonzero(found.certified)]
    return {
        "certified": 100 * len(proved) / len(labels),
        "certified_seconds": time.monotonic() - began,
        "proved": proved,
    }


def pieces(network: Network, images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, Callable[[], Answer]]:
    """What is measured, by name, quick things first."""
    attack = lambda version: lambda: attacked(network, images, labels, version, folder / f"{version}.state.npz")
    return {
        "quick": attack("quick"),
        "strong": attack("strong"),
        "certified": lambda: certified(network, images, labels),
        "official": lambda: official(network, images, labels),
    }


def row(path: Path, images: np.ndarray, labels: np.ndarray, folder: Path, wanted: list[str]) -> dict[str, Any]:
    """The row of a network from its pieces; raises `RuntimeError` if an image is certified and broken."""
    network = open_network(path)
    kept = Kept(folder, {"network": path.name, "num_images": len(labels)})
    making = pieces(network, images, labels, folder)
    found = {name: kept.get(name, make, may_run=True) for name, make in making.items() if name in wanted}
    for number in found.get("certified", {}).get("proved", []):
        for version in ("quick", "strong"):
            if found.get(version, {}).get("broken_by", {number: ""})[number]:
                raise RuntimeError(f"image {number} of {path} is certified, and {version} broke it: a bound is wrong.")
    left_out = ("broken_by", "proved", "official_flags")
    values = {key: value for piece in found.values() for key, value in piece.items() if key not in left_out}
    return values | {"num_images": len(labels), "parameters": sum(array.size for array in network.state.values())}


def _networks(arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    for text in arguments.network:
        name, _, path = text.rpartition("=")
        yield name or Path(path).stem, Path(path)
    if arguments.trades:
        yield "TRADES", arguments.trades


def main() -> None:
    """Measures what is not there yet, and writes each row as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", default=[], help="NAME=FILE.npz, as often as you like")
    parser.add_argument("--trades", type=Path, help="weights of TRADES")
    parser.add_argument("--raw_data_dir", required=True, help="official files of MNIST")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--work_dir", type=Path, default=Path("robust_accuracy"))
    parser.add_argument("--official", action="store_true", help="the official code as well")
    arguments = parser.parse_args()
    start_cpu_devices(0, batch_size=64)
    test = load_dataset(DataConfig("mnist", raw_data_dir=arguments.raw_data_dir), seed=0).test
    images = np.asarray(to_unit(test.images[: arguments.num_images]))
    labels = np.asarray(test.labels[: arguments.num_images], np.int32)
    wanted = ["quick", "strong", "certified", *(["official"] if arguments.official else [])]
    for name, path in _networks(arguments):
        folder = arguments.work_dir / f"{path.stem}_{len(labels)}"
        rows = {name: row(path, images, labels, folder, wanted)}
        found = write_records(NAME, rows, about=ABOUT, columns=COLUMNS, order=())
        print(markdown_table(found, COLUMNS), flush=True)


if __name__ == "__main__":
    main()
