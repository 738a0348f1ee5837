"""The paper's tables and figures, and a question of its text, as cells that jobs fill.

    table = build_table("2", scale)
    table.cells[0].quantities[0].jobs           # one for each seed

What the scale does not run (wider networks than it names) is in `Table.beyond`.
"""

import dataclasses
from collections.abc import Callable

from rap_jax.config.checks import require_choice
from rap_jax.reproduce import networks, paper
from rap_jax.reproduce.cells import Builder, Cell, Quantity
from rap_jax.reproduce.job import Job
from rap_jax.reproduce.scale import MNIST, Family, Scale


@dataclasses.dataclass(frozen=True)
class Table:
    """A table or figure.

    Attributes:
      name: `2`, `A1`, `figure3`, `scratch`, ...
      title: one line.
      about: what its rows and columns are.
      cells: in reading order.
      beyond: what the paper has and this scale does not run, in words.
    """

    name: str
    title: str
    about: str
    cells: tuple[Cell, ...]
    beyond: tuple[str, ...] = ()

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All that its cells need, without what those need in turn."""
        return tuple(job for cell in self.cells for quantity in cell.quantities for job in quantity.jobs)


def _pruning_table(scale: Scale, family: Family, given: paper.PruningTable) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    build, cells = Builder(scale, family), []
    for width in paper.WIDTHS:
        if not build.reaches(width, f"all of w={width}"):
            continue
        row = f"w={width}"
        cells.append(build.tested(row, "natural", build.over_seeds(networks.natural, width), given.natural[width]))
        jobs = build.over_seeds(networks.dense, width)
        cells.append(build.tested(row, "adversarial", jobs, given.adversarial[width]))
        for to in (to for to in paper.WIDTHS if to < width):
            jobs = build.over_seeds(networks.pruned, width, to)
            cells.append(build.tested(row, f"to {to}", jobs, given.pruned[width, to], attacked=True))
    return tuple(cells), tuple(build.beyond)


def _table_5(scale: Scale) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    build = Builder(scale, MNIST)
    cells = [
        build.tested(f"w={w}", f"to {to}", build.over_seeds(networks.inherited, w, to), paper.TABLE_5[w, to])
        for w, to in build.pruned(paper.TABLE_5)
    ]
    return tuple(cells), tuple(build.beyond)


def _table_6(scale: Scale) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    build, cells = Builder(scale, MNIST), []
    sources = [w for w in (4, 8, 16) if build.reaches(w, f"images of w={w}")] or [build.max_width]
    makers = [build.over_seeds(networks.dense, source) for source in sources]
    targets = {widths: build.over_seeds(networks.pruned, *widths) for widths in build.pruned(paper.TABLE_6)}
    for number, source in enumerate(sources):
        for (width, to), of_seeds in targets.items():
            jobs = tuple(
                networks.transferred(scale, MNIST, target, of_seed)
                for target, of_seed in zip(of_seeds, zip(*makers, strict=True), strict=True)
            )
            given = paper.TABLE_6[width, to].get(source)
            quantity = Quantity("transfer", jobs, f"transfer/{number}", given)
            cells.append(Cell(f"images of w={source}", f"{width} to {to}", (quantity,), of_seeds))
    return tuple(cells), tuple(build.beyond)


def _table_a1(scale: Scale) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    build = Builder(scale, "resnet18_cifar10")
    cells = [
        build.tested(f"w={w}", f"to {to}", build.over_seeds(networks.pruned, w, to, admm=False), paper.TABLE_A1[w, to])
        for w, to in build.pruned(paper.TABLE_A1)
    ]
    return tuple(cells), tuple(build.beyond)


def _table_b1(scale: Scale) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    build = Builder(scale, MNIST)
    cells = [
        build.tested(name, optimizer, build.over_seeds(networks.initialized, name, optimizer), given)
        for (name, optimizer), given in paper.TABLE_B1.items()
    ]
    return tuple(cells), ()


def _table_c1(scale: Scale) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    build = Builder(scale, MNIST)

    def cell(row: str, column: str, jobs: tuple[Job, ...], given: float) -> Cell:
        attacked = tuple(networks.cw_attacked(scale, MNIST, job) for job in jobs)
        return Cell(row, column, (Quantity("C&W", attacked, "combined", given),), jobs)

    cells = [
        cell(f"w={w}", "adversarial", build.over_seeds(networks.dense, w), given)
        for w, given in paper.TABLE_C1_DENSE.items()
        if build.reaches(w, f"dense w={w}")
    ]
    cells += [
        cell(f"w={w}", f"to {to}", build.over_seeds(networks.pruned, w, to), paper.TABLE_C1[w, to])
        for w, to in build.pruned(paper.TABLE_C1)
    ]
    return tuple(sorted(cells, key=lambda cell: int(cell.row[2:]))), tuple(build.beyond)


def _figure_1(scale: Scale) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    build, cells = Builder(scale, "vgg16_cifar10"), []
    for width, given in paper.FIGURE_1.items():
        if not build.reaches(width, f"w={width}"):
            continue
        jobs = build.over_seeds(networks.natural, width)
        quantity = Quantity("natural", jobs, "natural", paper.FIGURE_1_NATURAL[width])
        cells.append(Cell(f"w={width}", "natural training", (quantity,), jobs))
        adversarial = build.over_seeds(networks.dense, width)
        cells.append(build.tested(f"w={width}", "adversarial training", adversarial, given))
    return tuple(cells), tuple(build.beyond)


def _figure_3(scale: Scale) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    cells, beyond = list[Cell](), list[str]()
    families: dict[str, Family] = {"vgg16": "vgg16_cifar10", "resnet18": "resnet18_cifar10"}
    for (model, structure), given in paper.FIGURE_3.items():
        build = Builder(scale, families[model])
        # The paper prunes from w=16; a smaller scale from the widest that it runs, and has no number to compare with.
        full, row = build.max_width, f"{model}, {structure}"
        for width in (width for width in paper.WIDTHS if width <= full):
            if width == full:
                jobs = build.over_seeds(networks.dense, full)
            else:
                jobs = build.over_seeds(networks.pruned, full, width, structure=structure)
            number = given[width] if full == max(paper.WIDTHS) else None
            cells.append(build.tested(row, f"w={full}" if width == full else f"to {width}", jobs, number))
        if full < max(paper.WIDTHS):
            beyond.append(f"{row}: pruned from w={max(paper.WIDTHS)}")
    return tuple(cells), tuple(beyond)


def _scratch(scale: Scale) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    build, cells = Builder(scale, MNIST), []
    for to in (1, 2):
        if not build.reaches(to, f"all of w={to}"):
            continue
        row = f"w={to}"
        stuck = build.over_seeds(networks.collapsed, to)
        cells.append(build.tested(row, "from scratch, paper's recipe", stuck, paper.TABLE_2.adversarial[to]))
        jobs = build.over_seeds(networks.scratch, to)
        cells.append(build.tested(row, "from scratch, with a ramp", jobs, None, attacked=True))
        for width, _ in build.pruned((width, to) for width in (4, 8) if width > to):
            jobs = build.over_seeds(networks.pruned, width, to)
            given = paper.TABLE_2.pruned[width, to]
            cells.append(build.tested(row, f"pruned from {width}", jobs, given, attacked=True))
    return tuple(cells), tuple(build.beyond)


_LENET = "LeNet on MNIST"
_PRUNED = "Rows: width of the network that is pruned. Columns: the width whose share of the filters is left."
_BASELINES = f"{_PRUNED} Natural and adversarial: dense networks, trained without and with an attack."
_Parts = tuple[tuple[Cell, ...], tuple[str, ...]]
_TABLES: dict[str, tuple[str, str, Callable[[Scale], _Parts]]] = {
    "2": (f"Table 2: {_LENET}, filters", _BASELINES, lambda s: _pruning_table(s, MNIST, paper.TABLE_2)),
    "3": ("Table 3: LeNet on CIFAR-10, filters", _BASELINES,
          lambda s: _pruning_table(s, "lenet_cifar10", paper.TABLE_3)),
    "4": ("Table 4: ResNet-18 on CIFAR-10, filters", _BASELINES,
          lambda s: _pruning_table(s, "resnet18_cifar10", paper.TABLE_4)),
    "5": (f"Table 5: {_LENET}, inherited initialisation",
          "A network of the second width, trained from the initial weights of the filters that pruning has kept.",
          _table_5),
    "6": (f"Table 6: {_LENET}, transferred images",
          "Rows: the dense network on which PGD makes the images. Columns: the pruned network that is shown them.",
          _table_6),
    "A1": ("Table A1: ResNet-18 on CIFAR-10, cut and retrained without ADMM", _PRUNED, _table_a1),
    "B1": (f"Table B1: {_LENET}, width 1 from scratch by initialisation",
           "By the paper's recipe, without a ramp. SGD and cosine annealing: learning rate 0.01, ours.", _table_b1),
    "C1": (f"Table C1: {_LENET}, C&W L-infinity", _PRUNED, _table_c1),
    "figure1": ("Figure 1: VGG-16 on CIFAR-10 by width", "Dense networks.", _figure_1),
    "figure3": ("Figure 3: VGG-16 and ResNet-18 on CIFAR-10 by kind of pruning",
                "Pruned from the widest network of the scale to the share that each width has.", _figure_3),
    "scratch": (f"From scratch or by pruning: {_LENET}",
                "Equal epochs in all. With a ramp: the radius rises over the first epochs, and the learning rate is "
                "that of the other networks.", _scratch),
}  # fmt: skip
TABLES = tuple(_TABLES)


def build_table(name: str, scale: Scale) -> Table:
    """A table at a scale.

    Args:
      name: of `TABLES`.

    Raises:
      ValueError: there is no such table.
    """
    require_choice("table", name, TABLES)
    title, about, parts = _TABLES[name]
    cells, beyond = parts(scale)
    about += " A trial of the commands on a few steps: no number here means anything." if scale.name == "smoke" else ""
    return Table(name, title, about, cells, beyond)
