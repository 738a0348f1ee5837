"""The paper's tables and figures, with our numbers beside them: `python -m launch.reproduce --table=2`.

Called again with the same flags it goes on where it stopped.
"""

import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from launch.command import in_words, parse, start
from launch.compilation import enable_compilation_cache
from launch.flags import COMPILATION_CACHE
from launch.job_configs import settings_of
from launch.reproduce_flags import FLAGS, Plan, define_flags, help_text, plan_from_flags
from rap_jax.reproduce.job import in_order, level_of

if TYPE_CHECKING:
    from rap_jax.reproduce.portions import Settings

define_flags()
_ONE_DEVICE = ("--num_cpu_devices=1",)


def main(arguments: list[str]) -> None:
    """Does what the flags say; ends with the places of the reports."""
    with in_words("plan"):
        parse(FLAGS, arguments)
        plan = plan_from_flags()
        # All flags are tried out before the first job runs.
        settings = {job.name: settings_of(job, _extra()) for job in plan.jobs}
        if not FLAGS.collect:
            _check(plan, settings)
        if FLAGS.list:
            for command in _commands(plan, FLAGS.level):
                print(command)
            return
        if FLAGS.dry_run:
            print(_dry_run(plan, settings), end="")
            return
        failed = _run(plan, settings)
    if failed:
        sys.exit(f"error: {len(failed)} of {len(plan.jobs)} jobs failed or were skipped; see above, and the report.")


def _commands(plan: Plan, level: int) -> Iterator[str]:
    """A line for each job that is not done."""
    for job in plan.jobs:
        if job.results(plan.out) is None and level in (-1, level_of(job)):
            yield shlex.join(job.command(plan.out, _extra()))


def _dry_run(plan: Plan, settings: "dict[str, Settings]") -> str:
    """The plan with the time that is left, measured here."""
    from rap_jax._runtime.devices import start_cpu_devices
    from rap_jax.reproduce.clock import Clock
    from rap_jax.reproduce.estimate import estimate
    from rap_jax.reproduce.plan_table import format_plan

    batch_sizes = [each.run.batch_size for each in settings.values() if each.run]
    start_cpu_devices(0, batch_size=max(batch_sizes, default=1))
    enable_compilation_cache(COMPILATION_CACHE)
    clock = Clock(lambda kind: print(f"measuring {type(kind).__name__} ...", file=sys.stderr, flush=True))
    return format_plan(estimate(plan.jobs, settings, plan.out, clock))


def _extra() -> tuple[str, ...]:
    return _ONE_DEVICE if FLAGS.num_at_once > 1 else ()


def _check(plan: Plan, settings: "dict[str, Settings]") -> None:
    """Refuses a plan before its first job if it cannot go on with what is done."""
    from rap_jax.reproduce.same_settings import check_networks

    for table, reason in _refused(plan, settings).items():
        raise ValueError(f"Table {table}: {reason}")
    check_networks(plan.jobs, plan.out)


def _refused(plan: Plan, settings: "dict[str, Settings]") -> dict[str, str]:
    """The tables of which something was done otherwise than this plan says, or is damaged: name -> why."""
    from rap_jax.reproduce.same_settings import check_settings

    found = {}
    for table in plan.tables:
        try:
            for job in in_order(table.jobs):
                check_settings(job, plan.out, settings[job.name])
        except ValueError as error:
            found[table.name] = str(error)
    return found


def _run(plan: Plan, settings: "dict[str, Settings]") -> dict[str, str]:
    from rap_jax._runtime.interrupt import catch_signals
    from rap_jax.reproduce.collect import collect
    from rap_jax.reproduce.report import write_report
    from rap_jax.reproduce.run_jobs import Outcome, run_jobs

    outcome = Outcome({}, {})
    if not FLAGS.collect:
        say = lambda line: print(line, file=sys.stderr, flush=True)
        with catch_signals() as interrupt:
            outcome = run_jobs(
                plan.jobs, plan.out, interrupt=interrupt, num_at_once=FLAGS.num_at_once, extra=_extra(), say=say
            )
    elif not plan.out.is_dir():
        raise ValueError(f"--out={plan.out} is not there; expected the folder of a plan, whose results are collected.")
    failures = outcome.failed | outcome.skipped
    refused = _refused(plan, settings)  # what another process has done meanwhile may have been told otherwise
    for table in plan.tables:
        if table.name not in refused:
            print(write_report(collect(table, plan.out), plan.out, failures))
    if refused:
        reasons = "\n".join(f"Table {table}, no report: {reason}" for table, reason in refused.items())
        raise ValueError(reasons)
    return failures


def run() -> None:
    """Entry point of the console script."""
    start(main, help_text)


if __name__ == "__main__":
    run()
