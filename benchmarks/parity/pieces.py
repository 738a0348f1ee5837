"""The pieces of `benchmarks.autoattack_parity`, by name; each makes rows of the table out of what is kept on disk."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.parity import speed
from benchmarks.parity.compare import Bar, rows_of
from benchmarks.parity.deterministic import Case, deterministic_bars, right_examples
from benchmarks.parity.kept import Answer, Kept
from benchmarks.parity.own_randomness import PARTS, STANDARD, part_rows, standard_rows, ways_of
from benchmarks.parity.subject import Subject, load_subject
from benchmarks.pytorch.official_attacks import in_float64
from benchmarks.pytorch.official_autoattack import lenet_of
from benchmarks.records import Rows

# At which attacks break a part of the weak network's images.
_L2_EPSILON = 1.5


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      runs: folder of each network, `weak` or `strong`.
      work_dir: where pieces are kept.
      raw_data_dir, data_dir: of the images, see `load_subject`.
      num_images: under own randomness.
      num_seeds: of the official code.
      epsilon: radius of L-infinity attacks.
      num_compared: images with randomness removed.
      num_steps, num_queries: of the attacks there; elsewhere they have their own.
      num_timed: images whose attack is timed.
      rounds: of timing, for the whole ensemble.
    """

    runs: dict[str, Path]
    work_dir: Path
    raw_data_dir: str | None
    data_dir: str
    num_images: int = 1000
    num_seeds: int = 3
    epsilon: float = 0.3
    num_compared: int = 100
    num_steps: int = 100
    num_queries: int = 5000
    num_timed: int = 250
    rounds: int = 2

    def load(self, name: str, num_images: int, implementation: str = "auto") -> Subject:
        """A network with its first images."""
        return load_subject(
            self.runs[name],
            raw_data_dir=self.raw_data_dir,
            data_dir=self.data_dir,
            num_images=num_images,
            implementation=implementation,  # type: ignore[arg-type]
        )

    def kept(self, name: str, purpose: str, *counts: str) -> Kept:
        """The pieces of a network, for which the run and the settings named in `counts` matter."""
        results = (self.runs[name] / "results.json").read_bytes()
        identity = {"results.json": hashlib.sha256(results).hexdigest(), "epsilon": self.epsilon}
        values = {count: getattr(self, count) for count in counts}
        name_of_folder = " ".join([purpose, *map(str, values.values())])
        return Kept(self.work_dir / name / name_of_folder, identity | values)


class Piece(NamedTuple):
    """A piece. Attributes: name; rows: (whether it may be run now) -> rows; by_default: without being asked for."""

    name: str
    rows: Callable[[bool], Rows]
    by_default: bool


def all_pieces(settings: Settings) -> Iterator[Piece]:
    """Those of the networks that there are; only those of the bars are run by default."""
    for name in settings.runs:
        for norm in ("linf", "l2"):
            for precision in ("float64", "float32"):
                rows = functools.partial(_deterministic_rows, settings, name, norm, precision)
                by_default = name == "weak" and (norm, precision) != ("l2", "float32")
                yield Piece(f"{name}/{norm} {precision}", rows, by_default)
        for part in (*PARTS, STANDARD):
            rows = functools.partial(_own_rows, settings, name, part)
            yield Piece(f"{name}/{part}", rows, True)
    if "strong" in settings.runs:
        for part in speed.PARTS:
            yield Piece(f"speed/{part}", functools.partial(_speed_rows, settings, part), True)


def _deterministic_rows(settings: Settings, name: str, norm: str, precision: str, may_run: bool) -> Rows:
    def make() -> Answer:
        # Some images are wrong and left out. In the plain form of the convolutions ties are ties, as in PyTorch.
        subject = settings.load(name, 2 * settings.num_compared, "xla")
        network = lenet_of(subject.state)
        found = right_examples(subject.logits_fn, network, subject.images, subject.labels, settings.num_compared)
        epsilon = settings.epsilon if norm == "linf" else _L2_EPSILON
        case = Case(subject.logits_fn, network, *found, norm, epsilon)
        case = case._replace(num_steps=settings.num_steps, num_queries=settings.num_queries)
        if precision == "float32":
            return rows_of(map(_without_bar_of_rounding, deterministic_bars(case)))
        with jax.enable_x64(True), in_float64():
            logits_fn, images = subject.in_float64.logits_fn, case.images.astype(np.float64)
            case = case._replace(logits_fn=logits_fn, network=network.double(), images=images)
            return rows_of(deterministic_bars(case))

    kept = settings.kept(name, "deterministic", "num_compared", "num_steps", "num_queries")
    rows = kept.get(f"{norm} {precision}", make, may_run=may_run)
    return {row: values | {"num_examples": settings.num_compared} for row, values in rows.items()}


def _without_bar_of_rounding(bar: Bar) -> Bar:
    """The same, without a limit where rounding in float32 leads two sides different ways."""
    return bar if bar.attack == "losses" else bar._replace(limit=None)


def _own_rows(settings: Settings, name: str, part: str, may_run: bool) -> Rows:
    kept = settings.kept(name, "own", "num_images")
    ways = ways_of(functools.partial(_load, settings, name), settings.epsilon)
    if part == STANDARD:
        return standard_rows(kept, ways, may_run=may_run)
    return part_rows(kept, ways, part, num_seeds=settings.num_seeds, may_run=may_run)


@functools.lru_cache(maxsize=1)
def _load_once(run: Path, raw_data_dir: str | None, data_dir: str, num_images: int) -> Subject:
    return load_subject(run, raw_data_dir=raw_data_dir, data_dir=data_dir, num_images=num_images)


def _load(settings: Settings, name: str) -> Subject:
    return _load_once(settings.runs[name], settings.raw_data_dir, settings.data_dir, settings.num_images)


def _speed_rows(settings: Settings, part: str, may_run: bool) -> Rows:
    def make() -> Answer:
        rounds = settings.rounds if part == STANDARD else 1
        subject = settings.load("strong", settings.num_timed)
        return speed.measure(settings.runs["strong"], subject, part, epsilon=settings.epsilon, rounds=rounds)

    kept = settings.kept("strong", "speed", "num_timed", "rounds")
    return {"": kept.get(part, make, may_run=may_run)}
