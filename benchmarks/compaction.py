"""What compaction gives: `python -m benchmarks.compaction --run=FOLDER`.

    python -m launch.main --flagfile=lenet_mnist --width=8 --sparsity=0.75 ...       a run for --run
    python -m benchmarks.compaction --only=resnet18_w8                               one network; LeNet at random

LeNet of width 8 with a quarter of its filters (of a run, or at random) and ResNet-18 of width 8 with a quarter of the
filters of every layer (at random), compacted against dense, in JAX and in onnxruntime. Needs the extra `export`.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.compaction_cases import Networks, folded, networks_of_run, random_networks
from benchmarks.machine import num_cores
from benchmarks.records import Column, Rows, markdown_table, write_records
from benchmarks.turns import in_turn
from benchmarks.worker import Answer, clocked
from rap_jax.compaction.cost import NetworkForm, multiply_adds_of
from rap_jax.export import write_file
from rap_jax.export.exported_network import ExportedNetwork
from rap_jax.export.files import SUFFIXES
from rap_jax.export.onnx.file import open_session

BATCH_SIZES = (1, 64)
RUNTIMES = ("jax", "jax in its plain form", "onnxruntime")
# The least seconds of a turn, and the pause before it: threads of a runtime spin for a moment after their work.
_TURN, _PAUSE = 0.2, 0.1
ABOUT = """\
Compacted (`rap_jax.compaction.compact`: smaller layers, the same logits) against dense (the same network with its
removed filters as zeros), three quarters of the filters of every layer removed; multiply-adds of one image, median
time of a batch, all ways in turn in one process. JAX: one jitted program on one device that uses all cores,
implementation auto or, in its plain form, xla; weights as arguments. onnxruntime: the files that rap_jax.export
writes, the same number of cores. BatchNorm is folded into the convolutions in both (not in safetensors files, whose
PyTorch network has it). `over ratio` is the speed-up as a share of the ratio of multiply-adds; the bar is 0.6 at
batch 64. Files: the whole file over 4 bytes for each number in it; the bar is 5%; npz files are compressed. In
`resnet18_w8` each layer draws its own filters, so a channel of a sum goes only where all of its writers are gone; in
`resnet18_w8, streams` layers that add up lose the same."""
COLUMNS = (
    Column("multiply_adds_dense", "multiply-adds, dense", ",.0f"),
    Column("multiply_adds_compacted", "compacted", ",.0f"),
    Column("ratio", "ratio", ".2f"),
    Column("milliseconds_dense", "ms, dense", ".3f"),
    Column("milliseconds_compacted", "compacted", ".3f"),
    Column("speed_up", "speed-up", ".2f"),
    Column("over_ratio", "over ratio", ".2f"),
    Column("other_cores", "cores that others used", ".1f"),
    Column("bytes_dense", "bytes of the file, dense", ",d"),
    Column("bytes_compacted", "compacted", ",d"),
    Column("over_parameters", "file over its numbers", ".3f"),
)
_CASES: dict[str, Callable[[], Networks]] = {
    "lenet_w8": functools.partial(random_networks, "lenet_mnist"),
    "resnet18_w8": functools.partial(random_networks, "resnet18"),
    "resnet18_w8, streams": functools.partial(random_networks, "resnet18", "each stream"),
}


def measure(name: str, networks: Networks, *, rounds: int) -> Rows:
    """Rows of a network: each way at each batch size, and each format."""
    forms = {form: folded(exported) for form, exported in zip(networks._fields, networks, strict=True)}
    counts = {f"multiply_adds_{form}": _multiply_adds(exported) for form, exported in forms.items()}
    ratio = counts["multiply_adds_dense"] / counts["multiply_adds_compacted"]
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for file_format in ("npz", "onnx", "safetensors"):
            networks_by_form = networks._asdict() if file_format == "safetensors" else forms
            rows[f"{name}, {file_format}"] = _files(networks_by_form, file_format, Path(folder))
        for batch_size in BATCH_SIZES:
            times = in_turn(dict(_ways(forms, Path(folder), batch_size)), rounds=rounds)
            for runtime in RUNTIMES:
                dense, small = (times[f"{runtime} {form}"].median for form in forms)
                rows[f"{name}, {runtime}, batch {batch_size}"] = counts | {
                    "ratio": ratio,
                    "milliseconds_dense": 1e3 * dense,
                    "milliseconds_compacted": 1e3 * small,
                    "speed_up": dense / small,
                    "over_ratio": dense / small / ratio,
                    "spread": max(times[f"{runtime} {form}"].spread for form in forms),
                    "other_cores": max(max(times[f"{runtime} {form}"].other_cores) for form in forms),
                }
    return rows


def _multiply_adds(exported: ExportedNetwork) -> int:
    return multiply_adds_of(NetworkForm(exported.model, exported.weights)).all


def _files(networks_by_form: dict[str, ExportedNetwork], file_format: str, folder: Path) -> dict[str, Any]:
    """Writes the file of each form; their bytes, and those of the compacted one over its numbers."""
    sizes = {}
    for form, exported in networks_by_form.items():
        path = write_file(exported, file_format, folder / f"{form}{SUFFIXES[file_format]}")
        sizes[form] = path.stat().st_size
    numbers = sum(leaf.size for leaf in jax.tree.leaves(networks_by_form["compacted"].weights))
    return {f"bytes_{form}": size for form, size in sizes.items()} | {
        "over_parameters": sizes["compacted"] / (4 * numbers)
    }


def _ways(
    forms: dict[str, ExportedNetwork], folder: Path, batch_size: int
) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """Each form in each runtime, checked to give the same logits."""
    shape = (batch_size, *forms["dense"].model.input_shape)
    images = np.random.default_rng(1).random(shape, np.float32)
    expected = None
    for form, exported in forms.items():
        session = open_session(folder / f"{form}.onnx", num_threads=num_cores())
        run_session = functools.partial(session.logits_fn, images)
        plain = exported.model
        runs: dict[str, Callable[[], Any]] = {
            RUNTIMES[0]: _jax_run(exported._replace(model=plain.replace(implementation="auto")), images),
            RUNTIMES[1]: _jax_run(exported, images),
            RUNTIMES[2]: run_session,
        }
        for runtime, run in runs.items():
            logits = np.asarray(run())
            expected = logits if expected is None else expected
            if not np.allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()):
                raise ValueError(f"The logits of {form} in {runtime} are others; expected the same function.")
            yield f"{runtime} {form}", functools.partial(_turn, run, _num_runs(run))


def _jax_run(exported: ExportedNetwork, images: np.ndarray) -> Callable[[], Any]:
    model = exported.model
    weights, images_there = jax.device_put((exported.weights, images))
    logits = jax.jit(model.logits)
    return lambda: jax.block_until_ready(logits(weights, images_there))


def _num_runs(run: Callable[[], Any]) -> int:
    seconds = min(clocked(run)["seconds"] for _ in range(3))
    return max(1, round(_TURN / seconds))


def _turn(run: Callable[[], Any], count: int) -> Answer:
    time.sleep(_PAUSE)
    return clocked(run, count)


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a finished run: LeNet of width 8 with a quarter of its filters")
    parser.add_argument("--only", choices=list(_CASES), help="one network")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    cases = dict(_CASES)
    if arguments.run:
        cases["lenet_w8"] = functools.partial(networks_of_run, arguments.run)
    rows: Rows = {}
    for name in [arguments.only] if arguments.only else list(cases):
        rows |= measure(name, cases[name](), rounds=arguments.rounds)
    ways = [f"{way}, batch {size}" for size in BATCH_SIZES for way in RUNTIMES]
    order = [f"{name}, {what}" for name in cases for what in [*ways, "npz", "onnx", "safetensors"]]
    write_records("compaction", rows, about=ABOUT, columns=COLUMNS, order=order)
    print(markdown_table({name: rows[name] for name in order if name in rows}, COLUMNS))


if __name__ == "__main__":
    main()
