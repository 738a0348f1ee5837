"""The config of a job from its flags, built without running it, so that a plan is refused before it begins.

The folders of other jobs and the data need not be there.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from absl import flags

from launch import evaluate_flags
from launch import flags as training
from launch.configs import compute_from_flags, config_from_flags
from launch.flagfiles import expand_flagfiles
from rap_jax.config import EvaluationConfig, RunConfig
from rap_jax.config.checks import require
from rap_jax.reproduction.checks import JobConfig
from rap_jax.reproduction.job import Job

_ANYWHERE = Path("out")


def config_of(job: Job, extra: Iterable[str] = ()) -> JobConfig:
    """The config of a job; `extra` flags win over its own. A ValueError for a bad flag names job and flag."""
    try:
        return _of_run(job, extra) if job.module == "launch.main" else _of_evaluation(job, extra)
    except (ValueError, OSError, flags.Error) as error:
        raise ValueError(f"{job.name}: {error}") from error


def _of_run(job: Job, extra: Iterable[str]) -> RunConfig:
    values = _parsed(job, extra, training.FLAGS, training.GROUPS, list)
    compute_from_flags(values)  # refuses what cannot be computed
    return config_from_flags(values)


def _of_evaluation(job: Job, extra: Iterable[str]) -> EvaluationConfig:
    run = _of_run(dict(job.inputs)["checkpoint"][0], ())
    # What the evaluation reads of the run's results.json.
    results: dict[str, Any] = {"config": dataclasses.asdict(run), "data": {"name": run.data.dataset}}
    values = _parsed(job, extra, evaluate_flags.FLAGS, evaluate_flags.GROUPS, evaluate_flags.without_training)
    compute_from_flags(values)
    evaluate_flags.data_for(results, values)
    return evaluate_flags.evaluation_from_flags(results, values)


def _parsed(
    job: Job,
    extra: Iterable[str],
    defined: flags.FlagValues,
    groups: dict[str, list[str]],
    choose: Callable[[list[str]], list[str]],
) -> flags.FlagValues:
    """The flags of a job; those of the process keep their values."""
    values = flags.FlagValues()
    for name in (name for names in groups.values() for name in names):
        values[name] = copy.deepcopy(defined[name])
    values.unparse_flags()
    surplus = values(expand_flagfiles(job.command(_ANYWHERE, extra)[2:], choose))[1:]  # without `python -m`
    require(not surplus, "an argument", " ".join(surplus), "flags, written --name=value")
    return values
