"""A job: one command of a plan, the jobs that it needs, and the folder that it fills.

    dense = Job("dense_w4_seed0", "launch.main", ("--flagfile=quick_mnist", "--width=4", "--seed=0"))
    pruned = Job("admm_w4_to_w2_seed0", "launch.main", (...), inputs=(("start_run", (dense,)),))
    pruned.command(Path("out"))     # python -m launch.main ... --start_run=out/runs/dense_w4_seed0

Tables share jobs by name. A job is done when its folder holds results.json, which both commands write last.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

Module = Literal["launch.main", "launch.evaluate"]
_FOLDERS: dict[Module, str] = {"launch.main": "runs", "launch.evaluate": "evaluations"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One command."""

    name: str  # of its folder; two jobs of one name are one job
    module: Module  # a training run, or an evaluation of one
    flags: tuple[str, ...]  # of the command, but for its folder and those of other jobs
    inputs: "Inputs" = ()  # flag and the jobs whose folders it names; they have to be done before

    @property
    def needs(self) -> tuple["Job", ...]:
        """The jobs that have to be done before this one."""
        return tuple(job for _, jobs in self.inputs for job in jobs)

    @property
    def folder(self) -> str:
        """Its folder, below that of the plan."""
        return f"{_FOLDERS[self.module]}/{self.name}"

    def command(self, out: Path, extra: Iterable[str] = ()) -> list[str]:
        """The command line that starts it or goes on with it; `extra` flags win over its own."""
        given = [f"--{flag}={','.join(str(out / job.folder) for job in jobs)}" for flag, jobs in self.inputs]
        return ["python", "-m", self.module, *self.flags, *extra, *given, f"--out_dir={out / self.folder}"]

    def results(self, out: Path) -> dict[str, Any] | None:
        """The content of its results.json, or None if it is not done; raises as `read_results` does."""
        path = out / self.folder / "results.json"
        return read_results(path) if path.exists() else None


Inputs = tuple[tuple[str, tuple[Job, ...]], ...]


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results.json.

    Raises:
      ValueError: it is damaged or cannot be read; names it.
    """
    from rap_jax._runtime.integrity import read_checked  # with JAX, for which --help does not wait

    try:
        return read_checked(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); make it readable and call again.") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to have it made again.") from error


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """The jobs and all that they need, each once, none before what it needs."""
    found: dict[str, Job] = {}

    def add(job: Job) -> None:
        if job.name in found:
            if found[job.name] != job:
                raise ValueError(f"Two jobs are named {job.name}; expected one: {found[job.name]} and {job}.")
            return
        for need in job.needs:
            add(need)
        found[job.name] = job

    for job in jobs:
        add(job)
    return list(found.values())


def level_of(job: Job) -> int:
    """0 if it needs no other job, else one more than the highest level that it needs."""
    return 1 + max((level_of(need) for need in job.needs), default=-1)
