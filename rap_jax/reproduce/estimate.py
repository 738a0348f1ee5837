"""How long the jobs of a plan take on this machine: what they do is counted, and each kind of it is timed once.

    plan = estimate(in_order(table.jobs), settings, Path("reproduced/quick"))
    plan.seconds, plan.jobs[0].items

Attacks end early on what they break, so an evaluation takes at most so long. Not counted is what a process needs to
start, to read its data, to write checkpoints, and to measure at the end what the network costs: for a small one that
is seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rap_jax.reproduce.clock import Clock
from rap_jax.reproduce.job import Job
from rap_jax.reproduce.portions import Counter, Settings


class Item(NamedTuple):
    """A part of a job. Attributes: what: in words; units: of work, also a share of one; unit_seconds: of one."""

    what: str
    units: float
    unit_seconds: float

    @property
    def seconds(self) -> float:
        """Of all units."""
        return self.units * self.unit_seconds


class JobEstimate(NamedTuple):
    """A job's time. Attributes: job; items: what is left of it; done; at_most: whether it may well take less."""

    job: Job
    items: tuple[Item, ...]
    done: bool = False
    at_most: bool = False

    @property
    def seconds(self) -> float:
        """0 if it is done."""
        return sum(item.seconds for item in self.items)


class PlanEstimate(NamedTuple):
    """Jobs in the order in which they can run.

    Attributes:
      jobs: all of them.
      compile_seconds: of all programs, each once. A process compiles its own, unless an earlier one has left them in
        the compilation cache.
      num_kinds: of work that were timed.
    """

    jobs: tuple[JobEstimate, ...]
    compile_seconds: float
    num_kinds: int

    @property
    def seconds(self) -> float:
        """Of all jobs, one after the other, without compiling."""
        return sum(job.seconds for job in self.jobs)


def estimate(
    jobs: Sequence[Job], settings: Mapping[str, Settings], out: Path, clock: Clock | None = None
) -> PlanEstimate:
    """The time that is left for each job.

    A training job that has begun is estimated without its finished stages, an evaluation always whole.

    Args:
      jobs: with all that they need, none before what it needs.
      settings: job name -> what its flags say, of all of them.
      out: folder of the plan.
      clock: what it has measured is not measured again.

    Raises:
      ValueError: a length that cannot be, data of unknown size, layers that are not there, or a damaged results.json;
        names the job.
    """
    clock, counter = clock or Clock(), Counter(settings)
    found = tuple(_estimate(job, counter, clock, out) for job in jobs)
    return PlanEstimate(found, clock.compile_seconds, len(clock.measured))


def _estimate(job: Job, counter: Counter, clock: Clock, out: Path) -> JobEstimate:
    if job.results(out) is not None:
        return JobEstimate(job, (), done=True)
    is_done: Callable[[str], bool] = lambda part: (out / job.place / "stages" / f"{part}.json").exists()
    try:
        portions = counter.portions(job, is_done)
    except ValueError as error:
        raise ValueError(f"{job.name}: {error}") from error
    items = tuple(Item(portion.what, portion.units, clock.seconds(portion.kind)) for portion in portions)
    return JobEstimate(job, items, at_most=job.module == "launch.evaluate")
