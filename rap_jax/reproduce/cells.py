"""Cells of a table: the numbers that each shows, and the jobs that measure them.

A cell holds quantities, each with the jobs that measure it, the way to read it from their results, and the paper's
number where the paper has one.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from rap_jax.reproduce import networks, paper
from rap_jax.reproduce.job import Job
from rap_jax.reproduce.readings import Reading
from rap_jax.reproduce.scale import Family, Scale


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number of a cell.

    Attributes:
      label: `natural`, `PGD` (the paper's attack), `AutoAttack`, `C&W`, `transfer`.
      jobs: one for each seed.
      reading: how it is read from their results.
      paper: in percent, or None.
    """

    label: str
    jobs: tuple[Job, ...]
    reading: Reading
    paper: float | None = None


@dataclasses.dataclass(frozen=True)
class Cell:
    """Attributes: row, column: where it stands; quantities: what it shows; network: one job a seed, for its size."""

    row: str
    column: str
    quantities: tuple[Quantity, ...]
    network: tuple[Job, ...]


class Builder:
    """Cells of one network family at one scale; notes what is too wide."""

    def __init__(self, scale: Scale, family: Family):
        self.scale, self.family = scale, family
        self.max_width = scale.recipes[family].max_width
        self.beyond: list[str] = []

    def over_seeds(self, job: Callable[..., Job], *arguments: object, **options: object) -> tuple[Job, ...]:
        """The job for every seed."""
        seeds = range(self.scale.num_seeds)
        return tuple(job(self.scale, self.family, *arguments, seed, **options) for seed in seeds)

    def reaches(self, width: int, what: str) -> bool:
        """Whether networks of a width are run; if not, notes what is left out."""
        if width > self.max_width:
            self.beyond.append(what)
        return width <= self.max_width

    def tested(
        self, row: str, column: str, jobs: tuple[Job, ...], given: paper.Accuracies | None, *, attacked: bool = False
    ) -> Cell:
        """Natural and adversarial accuracy on the test set, with AutoAttack if asked."""
        quantities = [
            Quantity("natural", jobs, "natural", given.natural if given else None),
            Quantity("PGD", jobs, "robust", given.adversarial if given else None),
        ]
        if attacked:
            attacks = tuple(networks.auto_attacked(self.scale, job) for job in jobs)
            quantities.append(Quantity("AutoAttack", attacks, "auto_attack"))
        return Cell(row, column, tuple(quantities), jobs)

    def pruned(self, widths: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Those pairs of widths that are run."""
        for width, to in widths:
            if self.reaches(width, f"{width} to {to}"):
                yield width, to
