"""Certificates of a network of `launch.export --format=npz`: each method, and methods in turn against CROWN alone.

    python -m benchmarks.certificates --network=FILE.npz --raw_data_dir=MNIST --epsilon=0.05

Both ways are timed in turn, several rounds, without compiling: the programs are kept after a first round. Prints a
table; wants a quiet machine.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rap_jax.attacks import ThreatModel
from rap_jax.config import DataConfig
from rap_jax.data import load_dataset, to_unit
from rap_jax.evaluation.certificates import METHODS, Certificates, certify
from rap_jax.export import read_npz


def untried(images: np.ndarray, number: int) -> Certificates:
    """Nothing is known, and the first `number` methods are passed over."""
    none = np.zeros(len(images), bool)
    return Certificates(none, none, np.full(len(images), -np.inf, np.float32), images, np.full(len(images), number))


def main() -> None:
    """Measures what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", required=True)
    parser.add_argument("--raw_data_dir", type=Path, required=True)
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--num_images", type=int, default=64)
    parser.add_argument("--num_rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        measure(given, Path(folder))


def measure(given: argparse.Namespace, folder: Path) -> None:
    """Prints seconds and certified images of each way."""
    network = read_npz(given.network)
    data = load_dataset(DataConfig("mnist", str(folder), str(given.raw_data_dir)), seed=0).test
    images = np.asarray(to_unit(np.asarray(data.images[: given.num_images])))
    labels = np.asarray(data.labels[: given.num_images], np.int32)
    logits_fn = lambda x: network.model.logits(network.weights, x)
    threat_model = ThreatModel("linf", given.epsilon)
    ways: dict[str, dict[str, Any]] = {
        f"{method} alone": {"method": method, "known": untried(images, number)} for number, method in enumerate(METHODS)
    }
    ways["in turn"] = {"method": METHODS[-1]}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(given.num_rounds + 1):
        for name, way in ways.items():
            began = time.monotonic()
            found = certify(logits_fn, images, labels, threat_model=threat_model, **way)
            took = time.monotonic() - began
            if number:  # the first round compiles
                seconds[name].append(took)
            print(f"{number} {name}: {took:.1f} s, {found.certified.sum()} of {len(labels)} certified", flush=True)
    ratios = np.divide(seconds["crown alone"], seconds["in turn"])
    print(f"crown alone takes {np.median(ratios):.2f} times as long as in turn ({np.round(ratios, 2).tolist()})")


if __name__ == "__main__":
    main()
