"""A table in few sentences: how much of it is done, how it compares with the paper, and what has to be known of it."""

from collections.abc import Iterator

from rap_jax.config import STAGES
from rap_jax.reproduce.collect import Measured
from rap_jax.reproduce.grid import all_values
from rap_jax.reproduce.job import Job
from rap_jax.reproduce.values import ATTACKED_MARGIN, NATURAL_MARGIN, as_number, is_reached

REACHED = (
    f"Reached: above the paper's number, or at most {NATURAL_MARGIN:g} point (natural) or {ATTACKED_MARGIN:g} points "
    "(under attack) below it."
)

# The share of the most frequent class among the test images of MNIST and of CIFAR-10, in percent.
_ONE_CLASS = (11.35, 10.0)
# Numbers of the paper that are no achievement to reach.
_NOT_HARD = (*_ONE_CLASS, 0.0)


def summary(measured: Measured) -> str:
    """How much is done, and how many of the paper's numbers are reached."""
    total = len(measured.results) + len(measured.missing)
    text = f"{len(measured.results)} of {total} jobs are done."
    compared = [value for value in all_values(measured) if value.paper is not None]
    found = [value for value in compared if value.by_seed]
    if not compared:
        return f"{text} The paper has no number to compare with."
    reached = [value for value in found if is_reached(value)]
    easy = sum(value.paper in _NOT_HARD for value in reached)
    words = f", {easy} of them where the paper's network had collapsed or nothing was left of it" if easy else ""
    return (
        f"{text} Of {len(compared)} numbers of the paper, {len(found)} have one of ours beside them: {len(reached)} "
        f"reached{words}, {len(found) - len(reached)} not."
    )


def notes(measured: Measured) -> Iterator[str]:
    """What a reader has to know to read the numbers, each a sentence or two."""
    yield (
        "Ours is the mean over the seeds, on the test set, which each run reads once; the difference is ours less the "
        "paper's, in points. PGD is judged by the last image of each restart."
    )
    values = list(all_values(measured))
    stuck = sorted({value.paper for value in values if value.paper in _ONE_CLASS})
    if stuck:
        yield (
            f"{' or '.join(map(as_number, stuck))} is what a network has that answers one class for every image: there "
            "the paper's training collapsed."
        )
    images = sorted({value.num_images for value in values if value.label == "AutoAttack" and value.by_seed})
    if images:
        yield (
            f"AutoAttack is measured on the first {' or '.join(f'{number:,}' for number in images)} test images, "
            "natural and PGD accuracy on all. The paper has no AutoAttack."
        )
    lengths = _lengths(measured)
    if len(lengths) > 1:
        parts = (f"{epochs} in {', '.join(columns)}" for epochs, columns in lengths.items())
        yield f"Epochs of training, all stages together: {'; '.join(parts)}."
    jobs = {job.name for value in values if value.label == "AutoAttack" for job in value.jobs}
    if any(name in jobs and not results.get("auto_attack") for name, results in measured.results.items()):
        yield "This scale runs no AutoAttack: the column of that name shows what a short PGD leaves at any step."


def _lengths(measured: Measured) -> dict[int, list[str]]:
    """Epochs in all -> the columns of networks that were trained for so many; those that are done."""
    found: dict[int, dict[str, None]] = {}
    for cell in measured.table.cells:
        for job in cell.network:
            if job.name in measured.results:
                found.setdefault(_epochs(job, measured), {})[cell.column] = None
    return {epochs: list(columns) for epochs, columns in sorted(found.items())}


def _epochs(job: Job, measured: Measured) -> int:
    """Of a run's stages and of the run whose weights it began with."""
    results = measured.results[job.name]
    before = job.needs if results["config"]["start"]["weights"] == "final" else ()
    own = sum(results["config"][stage]["num_epochs"] for stage in STAGES)
    return int(own) + sum(_epochs(need, measured) for need in before if need.name in measured.results)
