"""The configs behind the flags of a job, built without running it, so that a plan is refused before it begins.

    config_of(job)        what a training job would train
    settings_of(job)      of any job

No folder has to be there: not those of other jobs, nor the data.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

from launch import evaluate_flags
from launch import flags as training
from launch.configs import compute_from_flags, config_from_flags
from launch.flagfiles import all_lines, expand_flagfiles
from rap_jax.config import RunConfig
from rap_jax.config.checks import require
from rap_jax.reproduce.job import Job

if TYPE_CHECKING:
    from rap_jax.reproduce.portions import Settings

_ANYWHERE = Path("out")
_Built = TypeVar("_Built")


def config_of(job: Job, extra: Iterable[str] = ()) -> RunConfig:
    """What a training job would train.

    Args:
      job: of `launch.main`.
      extra: more flags, which win over its own.

    Raises:
      ValueError: a flag that does not exist, or a value or a combination that cannot work; names job and flag.
    """
    require(job.module == "launch.main", f"module of {job.name}", job.module, "launch.main, which trains")
    return _built(job, lambda: config_from_flags(_training_values(job, extra)))


def settings_of(job: Job, extra: Iterable[str] = ()) -> "Settings":
    """What any job would do; raises as `config_of` does."""
    from rap_jax.reproduce.portions import Settings

    if job.module == "launch.evaluate":
        return _built(job, lambda: _of_evaluation(job, extra))
    run = config_of(job, extra)
    return Settings(run.data, compute_from_flags(_training_values(job, extra)), run)


def _of_evaluation(job: Job, extra: Iterable[str]) -> "Settings":
    from rap_jax.reproduce.portions import Settings

    values = _evaluation_values(job, extra)
    (network,) = dict(job.inputs)["checkpoint"]
    run = config_of(network)
    # What the evaluation reads of the run's results.json.
    results: dict[str, Any] = {"config": dataclasses.asdict(run), "data": {"name": run.data.dataset}}
    return Settings(
        data=evaluate_flags.data_for(results, values),
        compute=compute_from_flags(values),
        evaluation=evaluate_flags.evaluation_from_flags(results, values),
    )


def _training_values(job: Job, extra: Iterable[str]) -> flags.FlagValues:
    training.define_flags()
    names = [name for group in training.GROUPS.values() for name in group]
    return _parsed(job, extra, _copied(training.FLAGS, names), all_lines)


def _evaluation_values(job: Job, extra: Iterable[str]) -> flags.FlagValues:
    evaluate_flags.define_flags()
    names = [name for group in evaluate_flags.GROUPS.values() for name in group]
    return _parsed(job, extra, _copied(evaluate_flags.FLAGS, names), evaluate_flags.without_training)


def _copied(values: flags.FlagValues, names: Iterable[str]) -> flags.FlagValues:
    """The same flags at their defaults: those of the process keep their values."""
    found = flags.FlagValues()
    for name in names:
        found[name] = copy.deepcopy(values[name])
    found.unparse_flags()
    return found


def _parsed(
    job: Job, extra: Iterable[str], values: flags.FlagValues, choose: Callable[[list[str]], list[str]]
) -> flags.FlagValues:
    command = job.command(_ANYWHERE, extra)[2:]  # without `python -m`
    surplus = values(expand_flagfiles(command, choose))[1:]
    require(not surplus, "an argument", " ".join(surplus), "flags, written --name=value")
    return values


def _built(job: Job, build: Callable[[], _Built]) -> _Built:
    try:
        return build()
    except (ValueError, OSError, flags.Error) as error:
        reason = str(error)
        raise ValueError(reason if reason.startswith(f"{job.name}: ") else f"{job.name}: {reason}") from error
