"""Runs the jobs of a plan, each as a process of its own, so that one that fails takes nothing with it.

    not_done = run_jobs(jobs, Path("reproduced/quick"), interrupt=Interrupt(), num_at_once=2)
    not_done.failed     # {"lenet_mnist_dense_w4_seed0": "error: ..."}

A finished job is not run again. A stopped one goes on, because its command does. The runner waits for a job whose
folder another process holds, so several machines may run one plan in one shared folder.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rap_jax._runtime.interrupt import Interrupt
from rap_jax.reproduction.job import Job
from rap_jax.runs.folder import is_in_use

_SECONDS_BETWEEN_LOOKS = 0.2
_LOGS = "logs"
_IN_USE = "is in use by another process"


class FailedJobs(NamedTuple):
    """The jobs of a plan that were not done."""

    failed: dict[str, str]  # job name -> its last message
    skipped: dict[str, str]  # job name -> why it could not be run


class _Running(NamedTuple):
    job: Job
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
    say: Callable[[str], None] = lambda line: None,
) -> FailedJobs:
    """Runs the jobs that are not done.

    Args:
      jobs: in an order in which none comes before what it needs.
      out: folder of the plan; logs/NAME.log takes what a job prints.
      interrupt: once a signal has come, the running jobs get SIGTERM and are waited for.
      num_at_once: processes side by side.
      extra: flags for every job.
      say: called with a line when a job begins, ends or fails.

    Raises:
      ValueError: a results.json is damaged from the start.
      Interrupted: a signal came; every job has saved where it was.
    """
    return _Runner(jobs, out, num_at_once, extra, say).run(interrupt)


def log_of(job: Job, out: Path) -> Path:
    """Where a job's output goes."""
    return out / _LOGS / f"{job.name}.log"


class _Runner:
    """The plan under way."""

    def __init__(
        self, jobs: Sequence[Job], out: Path, num_at_once: int, extra: Sequence[str], say: Callable[[str], None]
    ):
        self.out, self.num_at_once, self.extra, self.say = out, num_at_once, extra, say
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
        unfinished = {*self.waiting, *(one.job.name for one in self.running)}
        for job in list(self.waiting.values()):
            if any(need.name in unfinished for need in job.needs):
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
            self._start(job)
            return True
        return False

    def _start(self, job: Job) -> None:
        del self.waiting[job.name]
        self.begun += 1
        command = [sys.executable, *job.command(self.out, self.extra)[1:]]
        self.say(f"[{self.begun}/{self.total}] {job.name}")
        with log_of(job, self.out).open("ab") as log:
            log_start = log.tell()
            # A session of its own: Ctrl-C in the terminal reaches it once, from here.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.running.append(_Running(job, process, time.monotonic(), log_start))

    def _collect(self) -> None:
        """Takes note of what has ended."""
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            try:
                done = one.job.results(self.out) is not None
            except ValueError as error:
                self._fail(one.job, str(error))
                continue
            reason = _reason(one.process.returncode, log_of(one.job, self.out), one.log_start)
            if done:
                note = f", but ended with: {reason}" if one.process.returncode else ""
                self.say(f"{one.job.name}: done in {time.monotonic() - one.began:,.0f} s{note}")
            elif _IN_USE in reason:  # another process was quicker
                self.waiting[one.job.name] = one.job
            else:
                self._fail(one.job, reason)

    def _fail(self, job: Job, reason: str) -> None:
        self.not_done.failed[job.name] = reason
        self.say(f"{job.name}: FAILED: {reason} ({log_of(job, self.out)})")

    def _skip(self) -> None:
        """Gives up what needs a job that has failed, and what needs that in turn."""
        failed, skipped = self.not_done
        for job in list(self.waiting.values()):
            missing = next((need.name for need in job.needs if need.name in failed or need.name in skipped), None)
            if missing is not None:
                del self.waiting[job.name]
                skipped[job.name] = f"needs {missing}, which {'failed' if missing in failed else 'was skipped'}"
                self.say(f"{job.name}: skipped, needs {missing}")

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
