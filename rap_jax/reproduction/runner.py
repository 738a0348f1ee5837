"""Runs the jobs of a plan, each as a process of its own, so that one that fails takes nothing with it.

    not_done = run_jobs(jobs, Path("reproduced/quick"), interrupt=Interrupt(), num_at_once=2)
    not_done.failed     # {"lenet_mnist_dense_w4_seed0": "error: ..."}

A finished job is not run again. A stopped one goes on, because its command does. The runner waits for a job whose
folder another process holds, so several machines may run one plan in one shared folder.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rap_jax._runtime.interrupt import Interrupt
from rap_jax.reproduction.job import Job
from rap_jax.reproduction.seeds import command_job, joined
from rap_jax.runs.folder import is_in_use

_SECONDS_BETWEEN_LOOKS = 0.2
_LOGS = "logs"
_IN_USE = "is in use by another process"
SeedsAtOnce = Callable[[Job], int]


class FailedJobs(NamedTuple):
    """The jobs of a plan that were not done."""

    failed: dict[str, str]  # job name -> its last message
    skipped: dict[str, str]  # job name -> why it could not be run


class _Running(NamedTuple):
    jobs: list[Job]  # of one command
    process: subprocess.Popen[bytes]
    began: float
    log_start: int  # what is before it in the log is of earlier calls


def run_jobs(
    jobs: Sequence[Job],
    out: Path,
    *,
    interrupt: Interrupt,
    num_at_once: int = 1,
    extra: Sequence[str] = (),
    seeds_at_once: SeedsAtOnce = lambda job: 1,
    say: Callable[[str], None] = lambda line: None,
) -> FailedJobs:
    """Runs the jobs that are not done.

    Args:
      jobs: in an order in which none comes before what it needs.
      out: folder of the plan; logs/NAME.log takes what a job prints.
      interrupt: once a signal has come, the running jobs get SIGTERM and are waited for.
      num_at_once: processes side by side.
      extra: flags for every job.
      seeds_at_once: how many jobs that differ from a job by their seed alone may be one command with it, at most.
      say: called with a line when a job begins, ends or fails.

    Raises:
      ValueError: a results.json is damaged from the start.
      Interrupted: a signal came; every job has saved where it was.
    """
    return _Runner(jobs, out, num_at_once, extra, seeds_at_once, say).run(interrupt)


def log_of(job: Job, out: Path) -> Path:
    """Where a job's output goes; of several seeds at once that of the first one."""
    return out / _LOGS / f"{job.name}.log"


class _Runner:
    """The plan under way."""

    def __init__(
        self,
        jobs: Sequence[Job],
        out: Path,
        num_at_once: int,
        extra: Sequence[str],
        seeds_at_once: SeedsAtOnce,
        say: Callable[[str], None],
    ):
        self.out, self.num_at_once, self.extra, self.say = out, num_at_once, extra, say
        self.seeds_at_once = seeds_at_once
        self.waiting = {job.name: job for job in jobs if job.results(out) is None}
        self.total, self.begun = len(self.waiting), 0
        self.running = list[_Running]()
        self.not_done = FailedJobs({}, {})
        self.elsewhere = set[str]()

    def run(self, interrupt: Interrupt) -> FailedJobs:
        (self.out / _LOGS).mkdir(parents=True, exist_ok=True)
        try:
            while self.waiting or self.running:
                interrupt.stop_if_requested("while its jobs were running")
                self._collect()
                self._skip()
                if len(self.running) >= self.num_at_once or not self._start_one():
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            self._stop()
        return self.not_done

    def _start_one(self) -> bool:
        """Starts the first job that can run now; False if there is none."""
        for job in list(self.waiting.values()):
            if not self._has_its_needs(job):
                continue
            try:
                if job.results(self.out) is not None:  # another process has done it meanwhile
                    del self.waiting[job.name]
                    return True
                if is_in_use(self.out / job.folder):
                    if job.name not in self.elsewhere:
                        self.elsewhere.add(job.name)
                        self.say(f"{job.name}: another process is at it; waiting")
                    continue
            except ValueError as error:
                del self.waiting[job.name]
                self._fail(job, str(error))
                return True
            self._start(joined(job, self._ready(), self.seeds_at_once(job)))
            return True
        return False

    def _has_its_needs(self, job: Job) -> bool:
        return not any(need.name in self.waiting or self._runs(need) for need in job.needs)

    def _ready(self) -> Iterator[Job]:
        """The jobs that could be started with another one: as far as can be seen, nobody has begun with them."""
        for job in self.waiting.values():
            with contextlib.suppress(ValueError):  # said when it is that job's turn
                free = job.results(self.out) is None and not is_in_use(self.out / job.folder)
                if free and self._has_its_needs(job):
                    yield job

    def _start(self, jobs: list[Job]) -> None:
        for job in jobs:
            del self.waiting[job.name]
        self.begun += len(jobs)
        command = [sys.executable, *command_job(jobs).command(self.out, self.extra)[1:]]
        self.say(f"[{self.begun}/{self.total}] {', '.join(job.name for job in jobs)}")
        with log_of(jobs[0], self.out).open("ab") as log:
            log_start = log.tell()
            # A session of its own: Ctrl-C in the terminal reaches it once, from here.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.running.append(_Running(jobs, process, time.monotonic(), log_start))

    def _collect(self) -> None:
        """Takes note of what has ended."""
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            log = log_of(one.jobs[0], self.out)
            reason = _reason(one.process.returncode, log, one.log_start)
            for job in one.jobs:
                self._note(job, one, reason, log)

    def _note(self, job: Job, one: _Running, reason: str, log: Path) -> None:
        try:
            done = job.results(self.out) is not None
        except ValueError as error:
            self._fail(job, str(error), log)
            return
        if done:
            note = f", but ended with: {reason}" if one.process.returncode and len(one.jobs) == 1 else ""
            self.say(f"{job.name}: done in {time.monotonic() - one.began:,.0f} s{note}")
        elif _IN_USE in reason:  # another process was quicker
            self.waiting[job.name] = job
        else:
            self._fail(job, reason, log)

    def _fail(self, job: Job, reason: str, log: Path | None = None) -> None:
        self.not_done.failed[job.name] = reason
        self.say(f"{job.name}: FAILED: {reason} ({log or log_of(job, self.out)})")

    def _skip(self) -> None:
        """Gives up what needs a job that has failed, and what needs that in turn."""
        failed, skipped = self.not_done
        for job in list(self.waiting.values()):
            missing = next((need.name for need in job.needs if need.name in failed or need.name in skipped), None)
            if missing is not None:
                del self.waiting[job.name]
                skipped[job.name] = f"needs {missing}, which {'failed' if missing in failed else 'was skipped'}"
                self.say(f"{job.name}: skipped, needs {missing}")

    def _runs(self, job: Job) -> bool:
        return any(other.name == job.name for one in self.running for other in one.jobs)

    def _stop(self) -> None:
        """Lets what still runs save itself."""
        for one in self.running:
            one.process.terminate()
        for one in self.running:
            one.process.wait()


def _reason(returncode: int, log: Path, start: int) -> str:
    """What a job said last, in one line, of what stands in its log from `start` on."""
    if returncode < 0:
        return f"killed by signal {-returncode}"
    said = log.read_bytes()[start:].decode(errors="replace")
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    # An error may go on over the lines after it.
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    last = " ".join(lines[errors[-1] :]) if errors else lines[-1]
    return last if returncode else f"it ended without results.json; its last line: {last}"
