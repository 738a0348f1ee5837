"""What tables are made of: quantities, cells, and a builder that makes the cells of one network family."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from rap_jax.reproduction import paper, recipes
from rap_jax.reproduction.job import Job
from rap_jax.reproduction.recipes import Family, Scale


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One number of a cell."""

    label: str  # `natural`, `PGD` (the paper's attack), `AutoAttack`, `C&W`, `transfer`
    jobs: tuple[Job, ...]  # one for each seed
    metric: str  # how it is read from their results, see `results.read_metric`
    paper: float | None = None  # in percent


@dataclasses.dataclass(frozen=True)
class Cell:
    """One network of a table."""

    row: str
    column: str
    quantities: tuple[Quantity, ...]
    network: tuple[Job, ...]  # that train it, one for each seed


@dataclasses.dataclass(frozen=True)
class Table:
    """A table or figure."""

    name: str  # `2`, `A1`, `figure3`, `scratch`, ...
    title: str
    about: str  # its rows and columns
    cells: tuple[Cell, ...]  # in reading order
    left_out: tuple[str, ...] = ()  # cells of the paper that are wider than the scale runs
    # A grid for each beginning of the rows, up to their first comma, with what the networks cost in every cell.
    by_block: bool = False

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs of its cells, without those that they need in turn."""
        return tuple(job for cell in self.cells for quantity in cell.quantities for job in quantity.jobs)


class Builder:
    """Makes the cells of one network family at one scale, and notes those that are too wide."""

    def __init__(self, scale: Scale, family: Family):
        self.scale, self.family = scale, family
        self.max_width = scale.recipes[family].max_width
        self.cells = list[Cell]()
        self.left_out = list[str]()
        self.by_block = False  # see `Table`

    def over_seeds(self, job: Callable[..., Job], *arguments: object, **options: object) -> tuple[Job, ...]:
        """The job for every seed."""
        seeds = range(self.scale.num_seeds)
        return tuple(job(self.scale, self.family, *arguments, seed, **options) for seed in seeds)

    def reaches(self, width: int, what: str) -> bool:
        """Whether the scale runs networks of a width; if not, notes what is left out."""
        if width > self.max_width:
            self.left_out.append(what)
        return width <= self.max_width

    def add_tested(
        self, row: str, column: str, jobs: tuple[Job, ...], given: paper.Accuracies | None, *, attacked: bool = False
    ) -> None:
        """Adds a cell with natural and adversarial accuracy on the test set, with AutoAttack if asked."""
        quantities = [
            Quantity("natural", jobs, "natural", given.natural if given else None),
            Quantity("PGD", jobs, "robust", given.adversarial if given else None),
        ]
        if attacked:
            attacks = tuple(recipes.auto_attacked(self.scale, job) for job in jobs)
            quantities.append(Quantity("AutoAttack", attacks, "auto_attack"))
        self.cells.append(Cell(row, column, tuple(quantities), jobs))

    def pruned(self, widths: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """The pairs of widths that the scale runs."""
        for width, to in widths:
            if self.reaches(width, f"{width} to {to}"):
                yield width, to
