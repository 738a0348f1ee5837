"""A plan of `launch.reproduce`, carried out: listed, forecast, run or collected, and its reports."""

import functools
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from launch.job_configs import config_of
from launch.reproduce_flags import FLAGS, JobPlan
from rap_jax._runtime.interrupt import catch_signals
from rap_jax._runtime.text import as_table
from rap_jax.config import STAGES, RunConfig
from rap_jax.reproduction.checks import JobConfig, as_json, check_networks, check_settings, past_seconds
from rap_jax.reproduction.job import Job, in_order, level_of
from rap_jax.reproduction.recipes import with_paper_settings
from rap_jax.reproduction.report import write_report
from rap_jax.reproduction.results import collect
from rap_jax.reproduction.runner import FailedJobs, run_jobs
from rap_jax.reproduction.seeds import seeds_that_pay
from rap_jax.reproduction.tables import Table, build_table

_ONE_DEVICE = ("--num_cpu_devices=1",)
# Of a checkout: plans whose results are committed.
_COMMITTED = Path(__file__).parent.parent / "results"
Configs = Mapping[str, JobConfig]  # job name -> config


def carry_out(plan: JobPlan) -> dict[str, str]:
    """Does what the flags ask for; returns the jobs that failed or were skipped, with the reasons."""
    # All flags are tried out before the first job runs.
    configs = {job.name: config_of(job, _extra()) for job in plan.jobs}
    if not FLAGS.collect:  # it has to go on with what is done
        for table, reason in _refused(plan, configs).items():
            raise ValueError(f"Table {table}: {reason}")
        check_networks(plan.jobs, plan.out)
    if FLAGS.list:
        for job in plan.jobs:
            if job.results(plan.out) is None and FLAGS.level in (-1, level_of(job)):
                print(shlex.join(job.command(plan.out, _extra())))
        return {}
    if FLAGS.dry_run:
        print(_dry_run(plan, configs))
        return {}
    return _run(plan, configs)


def _dry_run(plan: JobPlan, configs: Configs) -> str:
    """The jobs in order, and the time that finished jobs of the same settings took."""
    folders = [plan.out, *sorted(_COMMITTED.glob("*"))]
    numbers = {job.name: str(number) for number, job in enumerate(plan.jobs, start=1)}
    rows, known, num_unknown = [], 0.0, 0
    for job in plan.jobs:
        seconds = past_seconds(job, configs[job.name], folders)
        time = "-" if seconds is None else f"{seconds / 60:,.1f}"
        if job.results(plan.out) is not None:
            time = "done"
        elif seconds is None:
            num_unknown += 1
        else:
            known += seconds
        needs = ", ".join(numbers[need.name] for need in job.needs)
        rows.append((f"{numbers[job.name]} {job.name}", needs, *_work(configs[job.name]), time))
    num_done = sum(row[-1] == "done" for row in rows)
    return (
        f"{as_table(('Job', 'Needs', 'Epochs', 'Images', 'Minutes'), rows)}\n\n"
        f"{len(rows)} jobs, {num_done} done. Minutes: what jobs of the same settings took, in {plan.out} and in the "
        f"results of the repository.\nThe others: {known / 3600:,.1f} hours one after the other, without {num_unknown} "
        f"of unknown time."
    )


def _work(config: JobConfig) -> tuple[str, str]:
    """Epochs by stage and data of a run; images of an evaluation."""
    if isinstance(config, RunConfig):
        epochs = (config.stage(stage).num_epochs for stage in STAGES)
        return " + ".join(str(number) for number in epochs if number), config.data.dataset
    return "", f"{config.num_images:,}" if config.num_images else f"all {config.split}"


def _extra() -> tuple[str, ...]:
    return _ONE_DEVICE if FLAGS.num_at_once > 1 else ()


def _refused(plan: JobPlan, configs: Configs) -> dict[str, str]:
    """The tables with a finished job of other settings or with a damaged one: name -> why."""
    found = {}
    for table in plan.tables:
        try:
            for job in in_order(table.jobs):
                check_settings(job, plan.out, configs[job.name])
        except ValueError as error:
            found[table.name] = str(error)
    return found


def _run(plan: JobPlan, configs: Configs) -> dict[str, str]:
    not_done = FailedJobs({}, {})
    if not FLAGS.collect:
        say = lambda line: print(line, file=sys.stderr, flush=True)
        with catch_signals() as interrupt:
            not_done = run_jobs(
                plan.jobs,
                plan.out,
                interrupt=interrupt,
                num_at_once=FLAGS.num_at_once,
                extra=_extra(),
                seeds_at_once=functools.partial(_seeds_at_once, configs),
                say=say,
            )
    elif not plan.out.is_dir():
        raise ValueError(f"--out={plan.out} is not there; expected the folder of a plan, whose results are collected.")
    failures = not_done.failed | not_done.skipped
    refused = _refused(plan, configs)  # another process may have done jobs meanwhile, with other flags
    for table in plan.tables:
        if table.name not in refused:
            print(_report(plan, table, failures))
    if refused:
        reasons = "\n".join(f"Table {table}, no report: {reason}" for table, reason in refused.items())
        raise ValueError(reasons)
    return failures


def _seeds_at_once(configs: Configs, job: Job) -> int:
    """See `--seeds_at_once`."""
    config = configs[job.name]
    if not isinstance(config, RunConfig):
        return 1
    if FLAGS.seeds_at_once != "auto":
        return int(FLAGS.seeds_at_once)
    # The platform is asked only where it decides.
    return seeds_that_pay(config, _platform()) if seeds_that_pay(config, "gpu") > 1 else 1


@functools.cache
def _platform() -> str:
    """The platform of the runs, asked in a process that ends: here JAX would keep most of a GPU's memory."""
    if (named := os.environ.get("JAX_PLATFORMS", "")) and "," not in named:
        return named
    ask = "import jax; print(jax.default_backend())"
    found = subprocess.run([sys.executable, "-c", ask], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return (found.stdout.split() or ["cpu"])[-1]


def _report(plan: JobPlan, table: Table, failures: dict[str, str]) -> Path:
    jobs: list[Job] = in_order(build_table(table.name, with_paper_settings(plan.scale)).jobs)
    done = {job.name for job in plan.jobs if job.results(plan.out) is not None}
    paper = {job.name: as_json(config_of(job)) for job in jobs if job.name in done}
    return write_report(collect(table, plan.out), plan.out, failures, paper, pictures=FLAGS.pictures)
