"""The paper's tables and figures, and a question of its text, as cells that jobs fill.

table = build_table("2", scale)
table.cells[0].quantities[0].jobs           # one for each seed
"""

from collections.abc import Callable

from rap_jax.config.checks import require_choice
from rap_jax.reproduction import paper, recipes, rivals, robust
from rap_jax.reproduction.cells import Builder, Cell, Quantity, Table
from rap_jax.reproduction.job import Job
from rap_jax.reproduction.recipes import MNIST, Family, Scale


def _pruning_table(scale: Scale, family: Family, given: paper.PruningTable) -> Builder:
    build = Builder(scale, family)
    for width in (width for width in paper.WIDTHS if build.reaches(width, f"all of w={width}")):
        row = f"w={width}"
        build.add_tested(row, "natural", build.over_seeds(recipes.natural, width), given.natural[width])
        build.add_tested(row, "adversarial", build.over_seeds(recipes.dense, width), given.adversarial[width])
        for to in (to for to in paper.WIDTHS if to < width):
            jobs = build.over_seeds(recipes.pruned, width, to)
            build.add_tested(row, f"to {to}", jobs, given.pruned[width, to], attacked=True)
    return build


def _triangle(scale: Scale, family: Family, job: Callable[..., Job], given: paper.Cells, **options: object) -> Builder:
    """A row for each width that is pruned, a column for each width that is left."""
    build = Builder(scale, family)
    for width, to in build.pruned(given):
        jobs = build.over_seeds(job, width, to, **options)
        build.add_tested(f"w={width}", f"to {to}", jobs, given[width, to])
    return build


def _table_6(scale: Scale) -> Builder:
    build = Builder(scale, MNIST)
    sources = [w for w in (4, 8, 16) if build.reaches(w, f"images of w={w}")] or [build.max_width]
    makers = [build.over_seeds(recipes.dense, source) for source in sources]
    targets = {widths: build.over_seeds(recipes.pruned, *widths) for widths in build.pruned(paper.TABLE_6)}
    for number, source in enumerate(sources):
        for (width, to), of_seeds in targets.items():
            jobs = tuple(
                recipes.transferred(scale, MNIST, target, of_seed)
                for target, of_seed in zip(of_seeds, zip(*makers, strict=True), strict=True)
            )
            quantity = Quantity("transfer", jobs, f"transfer/{number}", paper.TABLE_6[width, to].get(source))
            build.cells.append(Cell(f"images of w={source}", f"{width} to {to}", (quantity,), of_seeds))
    return build


def _table_b1(scale: Scale) -> Builder:
    build = Builder(scale, MNIST)
    for (name, optimizer), given in paper.TABLE_B1.items():
        build.add_tested(name, optimizer, build.over_seeds(recipes.initialized, name, optimizer), given)
    return build


def _table_c1(scale: Scale) -> Builder:
    build = Builder(scale, MNIST)

    def add(row: str, column: str, jobs: tuple[Job, ...], given: float) -> None:
        attacked = tuple(recipes.cw_attacked(scale, MNIST, job) for job in jobs)
        build.cells.append(Cell(row, column, (Quantity("C&W", attacked, "combined", given),), jobs))

    for width, number in paper.TABLE_C1_DENSE.items():
        if build.reaches(width, f"dense w={width}"):
            add(f"w={width}", "adversarial", build.over_seeds(recipes.dense, width), number)
    for width, to in build.pruned(paper.TABLE_C1):
        add(f"w={width}", f"to {to}", build.over_seeds(recipes.pruned, width, to), paper.TABLE_C1[width, to])
    build.cells.sort(key=lambda cell: int(cell.row[2:]))
    return build


def _figure_1(scale: Scale) -> Builder:
    build = Builder(scale, "vgg16_cifar10")
    for width in (width for width in paper.FIGURE_1 if build.reaches(width, f"w={width}")):
        jobs, row = build.over_seeds(recipes.natural, width), f"w={width}"
        quantity = Quantity("natural", jobs, "natural", paper.FIGURE_1_NATURAL[width])
        build.cells.append(Cell(row, "natural training", (quantity,), jobs))
        build.add_tested(row, "adversarial training", build.over_seeds(recipes.dense, width), paper.FIGURE_1[width])
    return build


def _figure_3(scale: Scale) -> Builder:
    families: dict[str, Family] = {"vgg16": "vgg16_cifar10", "resnet18": "resnet18_cifar10"}
    builders = {model: Builder(scale, family) for model, family in families.items()}
    for (model, structure), given in paper.FIGURE_3.items():
        build, row = builders[model], f"{model}, {structure}"
        # The paper prunes from w=16; a smaller scale from the widest that it runs, and has no number to compare with.
        full, widest = build.max_width, max(paper.WIDTHS)
        for width in (width for width in paper.WIDTHS if width <= full):
            number = given[width] if full == widest else None
            if width == full:
                build.add_tested(row, f"w={full}", build.over_seeds(recipes.dense, full), number)
            else:
                jobs = build.over_seeds(recipes.pruned, full, width, structure=structure)
                build.add_tested(row, f"to {width}", jobs, number)
        if full < widest:
            build.left_out.append(f"{row}: pruned from w={widest}")
    vgg, resnet = builders.values()
    vgg.cells += resnet.cells
    vgg.left_out += resnet.left_out
    return vgg


def _scratch(scale: Scale) -> Builder:
    build = Builder(scale, MNIST)
    for to in (to for to in (1, 2) if build.reaches(to, f"all of w={to}")):
        row, given = f"w={to}", paper.TABLE_2
        jobs = build.over_seeds(recipes.collapsed, to)
        build.add_tested(row, "from scratch, paper's recipe", jobs, given.adversarial[to])
        jobs = build.over_seeds(recipes.scratch, to)
        build.add_tested(row, "from scratch, with a ramp", jobs, None, attacked=True)
        for width, _ in build.pruned((width, to) for width in (4, 8) if width > to):
            jobs = build.over_seeds(recipes.pruned, width, to)
            build.add_tested(row, f"pruned from {width}", jobs, given.pruned[width, to], attacked=True)
    return build


_LENET = "LeNet on MNIST"
_PRUNED = "Rows: width of the network that is pruned. Columns: the width whose share of the filters is left."
_BASELINES = f"{_PRUNED} Natural and adversarial: dense networks, trained without and with an attack."
_TABLES: dict[str, tuple[str, str, Callable[[Scale], Builder]]] = {
    "2": (f"Table 2: {_LENET}, filters", _BASELINES, lambda s: _pruning_table(s, MNIST, paper.TABLE_2)),
    "3": ("Table 3: LeNet on CIFAR-10, filters", _BASELINES,
          lambda s: _pruning_table(s, "lenet_cifar10", paper.TABLE_3)),
    "4": ("Table 4: ResNet-18 on CIFAR-10, filters", _BASELINES,
          lambda s: _pruning_table(s, "resnet18_cifar10", paper.TABLE_4)),
    "5": (f"Table 5: {_LENET}, inherited initialisation",
          "A network of the second width, trained from the initial weights of the filters that pruning has kept.",
          lambda s: _triangle(s, MNIST, recipes.inherited, paper.TABLE_5)),
    "6": (f"Table 6: {_LENET}, transferred images",
          "Rows: the dense network on which PGD makes the images. Columns: the pruned network that is shown them.",
          _table_6),
    "A1": ("Table A1: ResNet-18 on CIFAR-10, cut and retrained without ADMM", _PRUNED,
           lambda s: _triangle(s, "resnet18_cifar10", recipes.pruned, paper.TABLE_A1, admm=False)),
    "B1": (f"Table B1: {_LENET}, width 1 from scratch by initialisation",
           "By the paper's recipe, without a ramp. SGD and cosine annealing: learning rate 0.01, ours.", _table_b1),
    "C1": (f"Table C1: {_LENET}, C&W L-infinity", _PRUNED, _table_c1),
    "figure1": ("Figure 1: VGG-16 on CIFAR-10 by width", "Dense networks.", _figure_1),
    "figure3": ("Figure 3: VGG-16 and ResNet-18 on CIFAR-10 by kind of pruning",
                "Pruned from the widest network of the scale to the share that each width has.", _figure_3),
    "scratch": (f"From scratch or by pruning: {_LENET}",
                "Equal epochs in all. With a ramp: the radius rises over the first epochs, and the learning rate is "
                "that of the other networks.", _scratch),
    "robust": (f"Small and robust: {_LENET}",
               "Rows: width of the network that is left. Columns: where it comes from. The networks of the stronger "
               "recipe have equal epochs in all.", robust.sizes),
    "ablation": (f"The parts of the stronger recipe: {_LENET}",
                 "On the first images of the validation split: the recipe, without each of its parts, and with others, "
                 "8 epochs from scratch; then pruned. Columns: width.", robust.ablation),
    "rivals": (f"Methods of pruning: {_LENET}",
               "All start from one dense network per seed, by the stronger recipe, with equal epochs in each stage. "
               "Rows: what is pruned, the method, and how the layers share the total. Columns: the share that is "
               "removed. Multiply-adds: by weights that are not zero.", rivals.methods),
}  # fmt: skip
TABLES = tuple(_TABLES)


def build_table(name: str, scale: Scale) -> Table:
    """A table at a scale; the name is one of `TABLES`."""
    require_choice("table", name, TABLES)
    title, about, make = _TABLES[name]
    build = make(scale)
    about += " A trial of the commands on a few steps: no number here means anything." if scale.name == "smoke" else ""
    return Table(name, title, about, tuple(build.cells), tuple(build.left_out), build.by_block)
