r"""AutoAttack of rap_jax against the official code, and its speed: `python -m benchmarks.autoattack_parity`.

    python -m benchmarks.autoattack_parity --strong=RUN --weak=RUN --raw_data_dir=FOLDER --num_images=1000
    python -m benchmarks.autoattack_parity --weak=RUN --raw_data_dir=FOLDER --only=weak/square
    python -m benchmarks.autoattack_parity --write_reference      the file of tests/attacks/autoattack_reference_test.py

Both runs are LeNets of `launch.main` on MNIST; their weights are handed to the same network in PyTorch. The attacks
have radius 0.3. The strong one:

    python -m launch.main --flagfile=quick_mnist --retrain_epochs=6 --name=strong --raw_data_dir=FOLDER

The weak one should keep 20% to 60% of its images: where attacks always or never succeed, they agree anyway.

    python -m launch.main --flagfile=quick_mnist --raw_data_dir=FOLDER --name=weak --width=2 --sparsity=none \
        --train_num_steps=5 --train_step_size=0.15 --pretrain_epochs=2 --pretrain_epsilon_ramp_epochs=1.5 \
        --admm_epochs=0 --retrain_epochs=0

What is measured, piece by piece (`--only` takes the beginning of a name):

    weak/linf, weak/l2                randomness removed: losses, projections, the images that the attacks go through
    weak/apgd-ce, ...                 own randomness: each part alone on all images, beside the official one's seeds
    weak/standard, strong/standard    the whole ensemble
    speed/standard, speed/apgd-ce     examples per second on the strong network, in turn

Pieces are kept in `--work_dir` and not done again. The last line is `ratio R`, how many times as fast as the official
code AutoAttack is. Needs the extra `bench` (PyTorch and pyautoattack).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import num_cores
from benchmarks.parity.kept import NotDoneError
from benchmarks.parity.pieces import Settings, all_pieces
from benchmarks.pytorch.write_reference import write_reference
from benchmarks.records import Column, Rows, markdown_table, write_records
from rap_jax._runtime.devices import start_cpu_devices

ABOUT = """\
AutoAttack and its parts in rap_jax against the official code (pyautoattack), on LeNets with the same weights and on the
first test images of MNIST.

- weak, strong: a network that keeps about half of its images, and the main job's.
- linf, l2: randomness removed, both sides get the same starts and random numbers. Same path: all images that APGD asks
  about up to the first misclassified one within 1e-4 (L2: up to query 20). Best loss: the median difference. Same
  image: within 1e-5. Same success: of each example from each start. In float32 rounding leads the two sides apart, as
  it does the official code from images moved by 1e-7; the official L2 projection then misses the hyperplane where a
  gradient has entries that are tiny but not 0.
- The rest: own randomness, radius 0.3. Agreement: the share of examples on which both say the same, the lowest over
  pairs of seeds; the bar is the official code's own under two seeds, less 1 point. p: McNemar's exact test.
- standard: the whole ensemble; both, below: by how much the worst case of both sides is below either, in points."""
COLUMNS = (
    Column("num_examples", "examples"),
    Column("found", "found"),
    Column("bar", "bar"),
    Column("verdict", "verdict"),
    Column("rap_jax_robust", "robust, rap_jax"),
    Column("official_robust", "robust, official"),
)
SPEED_ABOUT = """\
Examples per second of AutoAttack in rap_jax and of the official code (pyautoattack), in turn, each in a process of its
own, on the main job's LeNet (w=4) and the first test images of MNIST, L-infinity, radius 0.3.

- standard: as called by default, with the checks of either side. The others: one part alone, on all images.
- First call: with compilation; further calls take the programs from a cache on disk."""
SPEED_COLUMNS = (
    Column("num_images", "images"),
    Column("official_per_second", "official examples/s", ".2f"),
    Column("rap_jax_per_second", "rap_jax examples/s", ".2f"),
    Column("ratio", "ratio", ".2f"),
    Column("rap_jax_first_seconds", "rap_jax first call s", ".1f"),
    Column("official_robust", "robust, official"),
    Column("rap_jax_robust", "robust, rap_jax"),
    Column("official_megabytes", "official MB", ".0f"),
    Column("rap_jax_megabytes", "rap_jax MB", ".0f"),
)
_REFERENCE = Path(__file__).parent.parent / "tests/attacks/reference/autoattack.npz"
_SPEED = "speed/standard"
# For --quick: enough to see that everything runs.
_QUICK = {"num_images": 20, "num_compared": 8, "num_steps": 20, "num_queries": 100, "num_timed": 20, "rounds": 1}


def main() -> None:
    """Measures what is asked for and not there yet, prints the table and writes the results."""
    arguments = _arguments()
    if arguments.write_reference:
        write_reference(_REFERENCE)
        return
    start_cpu_devices(0, batch_size=64)
    torch.set_num_threads(arguments.threads)
    found = _rows(_settings(arguments), arguments.only)
    is_speed = lambda name: name.startswith("speed/")
    rows = {name: row for name, row in found.items() if not is_speed(name)}
    speed = {name: row for name, row in found.items() if is_speed(name)}
    _report("autoattack_parity", rows, ABOUT, COLUMNS, write=not arguments.quick)
    _report("autoattack_speed", speed, SPEED_ABOUT, SPEED_COLUMNS, write=not arguments.quick)
    failed = [name for name, row in rows.items() if row["passed"] is False]
    print("\n".join(["All bars hold." if not failed else "These bars do not hold:", *failed]))
    if _SPEED in speed:
        print(f"ratio {speed[_SPEED]['ratio']:.2f}")


def _report(name: str, rows: Rows, about: str, columns: Sequence[Column], *, write: bool) -> None:
    if not rows:
        return
    if write:
        write_records(name, rows, about=about, columns=columns, order=list(rows))
    print(markdown_table(rows, columns))


def _rows(settings: Settings, only: str | None) -> Rows:
    """Rows of all pieces that are done, those asked for included."""
    rows: Rows = {}
    for piece in all_pieces(settings):
        asked = piece.name.startswith(only) if only else piece.by_default
        try:
            found = piece.rows(asked)
        except NotDoneError:
            continue
        rows |= {f"{piece.name} {row}".strip(): values for row, values in found.items()}
    return rows


def _settings(arguments: argparse.Namespace) -> Settings:
    runs = {name: Path(run) for name in ("weak", "strong") if (run := getattr(arguments, name))}
    chosen: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("num_images", "num_seeds", "epsilon", "num_compared", "num_timed", "rounds", "raw_data_dir")
    }
    work_dir = Path(arguments.work_dir) / ("quick" if arguments.quick else "")
    data_dir = arguments.data_dir or str(work_dir / "data")
    return Settings(runs, work_dir, data_dir=data_dir, **chosen | (_QUICK if arguments.quick else {}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weak", help="folder of the weak network's run")
    parser.add_argument("--strong", help="folder of the strong network's run")
    parser.add_argument("--raw_data_dir", help="folder with the official MNIST files")
    parser.add_argument("--data_dir", help="where their prepared copy is or will be; without it in --work_dir")
    parser.add_argument("--num_images", type=int, default=Settings.num_images, help="test images, own randomness")
    parser.add_argument("--seeds", dest="num_seeds", type=int, default=Settings.num_seeds, help="of the official code")
    parser.add_argument("--epsilon", type=float, default=Settings.epsilon, help="radius, L-infinity")
    parser.add_argument("--num_compared", type=int, default=Settings.num_compared, help="images, randomness removed")
    parser.add_argument("--num_timed", type=int, default=Settings.num_timed, help="images, speed")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="of the speed of the whole ensemble")
    parser.add_argument("--work_dir", default="runs/autoattack_parity", help="where finished pieces are kept")
    parser.add_argument(
        "--threads", type=int, default=num_cores(), help="of PyTorch, but for speed; 1 beside other work"
    )
    parser.add_argument("--only", help="pieces whose name begins so, such as weak/square")
    parser.add_argument("--quick", action="store_true", help="whether everything runs; writes no results")
    parser.add_argument("--write_reference", action="store_true", help="the file for the tests, and nothing else")
    return parser.parse_args()


if __name__ == "__main__":
    main()
