"""Jobs that differ by their seed alone, run as one command: `launch.main --num_seeds=N`.

Each job keeps its folder and its results, so tables do not depend on how its seed was trained.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from rap_jax.config import RunConfig
from rap_jax.reproduction.job import Job

_PLACEHOLDER = "{seed}"  # what `launch.main` puts a seed for
_ALONE = ("--stream_data", "--num_model_shards")  # what several seeds are not trained with


def seeds_that_pay(config: RunConfig, platform: str) -> int:
    """How many seeds of a run one process trains at once, at most; 1 where several are no faster.

    Measured by `benchmarks.sweep_worker` on an H100, images per second against one network: LeNets w=1 3.7 times with
    16 seeds and 4.9 with 64, w=4 3.0 with 16, w=16 1.4 with 8. Other networks were not measured. On a CPU of two cores
    (`benchmarks.sweep`) several are slower or within the noise at w >= 2, and 1.3 times as fast at w=1 at best: there
    a plan trains each seed by itself, on all cores.
    """
    if platform == "cpu" or not config.model.name.startswith("lenet"):
        return 1
    width = config.model.width
    return 64 if width == 1 else 16 if width <= 4 else 8


def recipe_of(job: Job) -> Job | None:
    """The job with `{seed}` in place of its seed, which all jobs of its recipe share; None if it has to run alone."""
    seed = _seed_of(job)
    if job.module != "launch.main" or seed is None or any(flag.startswith(_ALONE) for flag in job.flags):
        return None
    needs = [_named_by_seed(need, seed) for need in job.needs]
    if not all(need.name.endswith(_PLACEHOLDER) for need in needs) or any(len(jobs) > 1 for _, jobs in job.inputs):
        return None
    name = _named_by_seed(job, seed).name
    own = {f"--seed={seed}": f"--seed={_PLACEHOLDER}", f"--name={job.name}": f"--name={name}"}
    inputs = tuple((flag, (need,)) for (flag, _), need in zip(job.inputs, needs, strict=True))
    return Job(name, job.module, tuple(own.get(flag, flag) for flag in job.flags), inputs)


def joined(job: Job, ready: Iterable[Job], at_most: int) -> list[Job]:
    """The job and those of the ready ones that go on from its seed without a gap."""
    recipe, seed = recipe_of(job), _seed_of(job)
    if recipe is None or seed is None or at_most < 2:
        return [job]
    others = {_seed_of(other): other for other in ready if recipe_of(other) == recipe}
    found = [job]
    while len(found) < at_most and (following := others.get(seed + len(found))) is not None:
        found.append(following)
    return found


def command_job(jobs: Sequence[Job]) -> Job:
    """The job whose command runs all of them, which `joined` has put together."""
    recipe = recipe_of(jobs[0])
    if len(jobs) == 1 or recipe is None:
        return jobs[0]
    own = {f"--seed={_PLACEHOLDER}": f"--seed={_seed_of(jobs[0])}"}
    flags = (*(own.get(flag, flag) for flag in recipe.flags), f"--num_seeds={len(jobs)}")
    return dataclasses.replace(recipe, flags=flags)


def _seed_of(job: Job) -> int | None:
    """The seed that ends its name and stands in its flags, once."""
    seed = job.name.rpartition("_seed")[2]
    return int(seed) if seed.isdigit() and job.flags.count(f"--seed={seed}") == 1 else None


def _named_by_seed(job: Job, seed: int) -> Job:
    """A job of that name without anything else: what is needed of a job whose folder is named."""
    stem, separator, given = job.name.rpartition("_seed")
    name = f"{stem}{separator}{_PLACEHOLDER}" if given == str(seed) else job.name
    return Job(name, job.module, ())
