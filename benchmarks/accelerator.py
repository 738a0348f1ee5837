"""What one accelerator does: AutoAttack, the main job, training steps, seeds, memory, and equality with the CPU.

    python -m benchmarks.accelerator --part=autoattack --raw_data_dir=MNIST --trades=NETWORK.npz --minutes=9
    python -m benchmarks.accelerator --part=steps,seeds --only=steps/resnet18
    python -m benchmarks.accelerator --tiny                 small sizes, for a CPU: does everything run?
    python -m benchmarks.accelerator --report               the tables of benchmarks/results/accelerator.md

A line is written to OUT/accelerator.jsonl after each row. A later call with the same --out goes on with the rows that
are missing or have failed. A row that fails says why, and the next one goes on. No row needs another one, but for
`job/evaluate` and, without --trades, those of `autoattack`: they take the network that `job/main` trained.

Compared with PyTorch where it is installed (the extra `bench`), else the rows of rap_jax stand alone.
"""

import argparse
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.accelerators.attacked import read_trades
from benchmarks.accelerators.autoattack import autoattack_rows
from benchmarks.accelerators.equality import equality_rows
from benchmarks.accelerators.job import job_rows
from benchmarks.accelerators.memory import memory_rows
from benchmarks.accelerators.process import Process, RowError
from benchmarks.accelerators.row_log import RowLog
from benchmarks.accelerators.seeds import seeds_rows
from benchmarks.accelerators.session import Row, Settings, run_rows
from benchmarks.accelerators.steps import step_rows
from benchmarks.accelerators.tables import NAME, PARTS, write_report
from benchmarks.machine import describe_machine
from benchmarks.records import RESULTS
from rap_jax.config import require

_ROWS = {
    "autoattack": autoattack_rows,
    "job": job_rows,
    "steps": step_rows,
    "seeds": seeds_rows,
    "memory": memory_rows,
    "equality": equality_rows,
}
# They need the real MNIST.
_NEED_DATA = ("autoattack", "job")
_TINY_NUM_IMAGES = 2
# JAX has found its devices by then.
_START_SECONDS = 300


def rows_of(settings: Settings, parts: tuple[str, ...] | None, only: str) -> list[Row]:
    """The rows that are asked for; without `parts` all that can be measured, in the order in which they are wanted.

    Raises:
      ValueError: there are none.
    """
    chosen = parts or tuple(part for part in PARTS if settings.raw_data_dir is not None or part not in _NEED_DATA)
    if settings.trades is None and {"job", "autoattack"} <= set(chosen):  # the one needs the other's network
        chosen = ("job", *(part for part in chosen if part != "job"))
    rows = [row for part in chosen for row in _ROWS[part](settings)]
    found = [row for row in rows if row.name.startswith(only)]
    require(bool(found), "only", only, f"the beginning of one of {', '.join(row.name for row in rows)}")
    return found


def machine_of(settings: Settings) -> dict[str, Any]:
    """Device, versions and date.

    Raises:
      ValueError: there is no accelerator, and the sizes are not tiny.
      RowError: JAX does not start.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    log = settings.out / "device.log"
    with Process("benchmarks.accelerators.device", log=log, deadline=time.monotonic() + _START_SECONDS) as process:
        device = process.ask("describe")
    fits = settings.tiny or device["platform"] != "cpu"
    require(fits, "device of JAX", device["device"], "an accelerator, or --tiny")
    return device | describe_machine()


def main() -> None:
    """Measures what is asked for and not there yet, or writes the tables of what is there."""
    arguments = _arguments()
    try:
        settings = _settings(arguments)
        log = RowLog(settings.out / f"{NAME}.jsonl", tiny=settings.tiny)
        if arguments.report:
            _report(log, settings)
            return
        parts = _parts(arguments.part)
        rows = rows_of(settings, parts, arguments.only)
        if parts is None and settings.raw_data_dir is None:
            print(f"Without --raw_data_dir these parts are left out: {', '.join(_NEED_DATA)}.")
        machine = machine_of(settings)
        # The workers end, too, and leave the card to others.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped; the same command goes on."))
        print(f"{machine['device']} ({machine['platform']}), rows to {log.path}", flush=True)
        num_failed = run_rows(rows, settings, log, machine, minutes=arguments.minutes, again=arguments.again)
        if num_failed:
            sys.exit(f"{num_failed} of {len(rows)} rows failed, see above; the same command tries them again.")
    except (ValueError, OSError, RowError) as error:
        sys.exit(f"error: {error}")


def _report(log: RowLog, settings: Settings) -> None:
    lines = log.latest()
    require(
        bool(lines),
        "out",
        str(settings.out),
        f"a folder with rows in {log.path.name}, which a call makes; of tiny ones with --tiny",
    )
    print(write_report(lines, settings.out if settings.tiny else RESULTS))


def _parts(text: str | None) -> tuple[str, ...] | None:
    parts = None if text is None else tuple(text.split(","))
    for part in parts or ():
        require(part in PARTS, "part", part, f"one of {', '.join(PARTS)}")
    return parts


def _settings(arguments: argparse.Namespace) -> Settings:
    out = Path(arguments.out)
    require(not out.exists() or out.is_dir(), "out", str(out), "a folder, or the name of a new one")
    raw, trades = (None if path is None else Path(path) for path in (arguments.raw_data_dir, arguments.trades))
    require(raw is None or raw.is_dir(), "raw_data_dir", str(raw), "a folder with the official files of MNIST")
    require(arguments.minutes > 0, "minutes", arguments.minutes, "a number above 0")
    require(arguments.num_images is None or arguments.num_images > 0, "num_images", arguments.num_images, "1 or more")
    if trades is not None:
        read_trades(trades)
    if raw is None:
        needing = [part for part in _parts(arguments.part) or () if part in _NEED_DATA]
        require(not needing or arguments.report, "raw_data_dir", None, f"the folder of MNIST, for {', '.join(needing)}")
    num_images = arguments.num_images or (_TINY_NUM_IMAGES if arguments.tiny else Settings.num_images)
    return Settings(out, arguments.tiny, raw, trades, num_images)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        sys.exit(f"error: {message}; see --help.")


def _arguments() -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=f"runs/{NAME}", help="folder of the rows, and of what is trained and logged")
    parser.add_argument("--part", help=f"some of {','.join(PARTS)}; without it all, in this order")
    parser.add_argument("--only", default="", help="rows whose name begins so, such as steps/resnet18")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop before a row that would not fit")
    parser.add_argument("--again", action="store_true", help="measure rows that are done, too")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--report", action="store_true", help="write the tables, of tiny rows to OUT; measure nothing")
    parser.add_argument("--raw_data_dir", help="folder with the official MNIST files, for autoattack and job")
    parser.add_argument("--trades", help="the published TRADES network for MNIST as .npz, for autoattack")
    parser.add_argument("--num_images", type=int, help=f"test images of AutoAttack; without it {Settings.num_images}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
