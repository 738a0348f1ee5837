"""Where each number of a table comes from: the job, its command, its seed, and what it ran on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rap_jax.reproduce.collect import Measured
from rap_jax.reproduce.job import Job
from rap_jax.reproduce.settings import is_run

Results = dict[str, Any]


class Number(NamedTuple):
    """One number of one seed.

    Attributes:
      row, column, label: whose it is.
      seed: of the network.
      percent: the number.
      num_images: it was measured on.
      job: name of the job that measured it.
    """

    row: str
    column: str
    label: str
    seed: int
    percent: float
    num_images: int
    job: str


class Source(NamedTuple):
    """A job that is done.

    Attributes:
      name: of the job, and of its folder.
      command: that ran it, as its results say.
      data: name and sha256 of the data set; of an evaluation, the sha256 of the attacked images too.
      seed: given to the command; an evaluation has one for its attacks.
      environment: versions and device.
    """

    name: str
    command: str
    data: str
    seed: str
    environment: str


def numbers(measured: Measured) -> tuple[Number, ...]:
    """Every number that a mean of the table is made of."""
    return tuple(
        Number(cell.row, cell.column, value.label, seed, percent, value.num_images, value.jobs[seed].name)
        for cell in measured.cells
        for value in cell.values
        for seed, percent in value.by_seed.items()
    )


def sources(measured: Measured) -> tuple[Source, ...]:
    """All jobs that are done, also those that others began with."""
    return tuple(_source(name, results) for name, results in measured.results.items())


def missing(measured: Measured, failures: Mapping[str, str]) -> tuple[tuple[Job, str], ...]:
    """The jobs that are not done, each with the message of its failure or an empty text."""
    return tuple((job, failures.get(job.name, "")) for job in measured.missing)


def _source(name: str, results: Results) -> Source:
    data = results.get("data", {})
    about = [str(data.get("name", "-")), f"sha256 {data.get('sha256', '-')}"]
    if "attacked_sha256" in data:
        about.append(f"attacked images {data['attacked_sha256']}")
    versions = ", ".join(f"{package} {version}" for package, version in sorted(results.get("versions", {}).items()))
    return Source(
        name=name,
        command=str(results.get("command", "-")),
        data=", ".join(about),
        seed=_seed(results),
        environment=f"{results.get('device', '-')}; {versions}",
    )


def _seed(results: Results) -> str:
    seed = results.get("seed", results.get("config", {}).get("seed", "-"))
    return str(seed) if is_run(results) else f"{seed} of the attack"


def numbered(texts: tuple[str, ...], letter: str) -> dict[str, str]:
    """Short names for texts that most sources share: text -> `V1`, in order of appearance."""
    return {text: f"{letter}{place}" for place, text in enumerate(dict.fromkeys(texts), start=1)}
