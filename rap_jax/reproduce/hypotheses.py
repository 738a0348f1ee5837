"""Two claims of the paper's text, beside what a table shows: small networks from scratch, and inherited weights.

What is said of our numbers is chosen by the numbers; a cell without one is named as missing.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from rap_jax.reproduce import paper
from rap_jax.reproduce.collect import Measured, Value
from rap_jax.reproduce.grid import Grid, as_grid
from rap_jax.reproduce.readings import read
from rap_jax.reproduce.values import as_number, as_seeds, as_spread

# A network that answers the most frequent class for every image has 11.35 on MNIST.
COLLAPSED = 12.0


class Section(NamedTuple):
    """Attributes: heading: above it; paragraphs: plain text; points: plain text, a list below them."""

    heading: str
    paragraphs: tuple[str, ...]
    points: tuple[str, ...] = ()


class Page(NamedTuple):
    """Attributes: title: the question; sections: in reading order."""

    title: str
    sections: tuple[Section, ...]


def hypothesis(measured: Measured) -> Page | None:
    """The page of a table whose question the paper answers in its text; None for all others."""
    make = _PAGES.get(measured.table.name)
    return make(measured) if make else None


def _scratch(measured: Measured) -> Page:
    grid, t2, t4 = as_grid(measured), paper.TABLE_2, paper.TABLE_4
    more = t4.pruned[8, 1].adversarial - t4.adversarial[1].adversarial
    says = (
        "The paper says that a small network cannot be trained against an attack from scratch, and that pruning a "
        "larger one while it is attacked gives what training alone does not. Its LeNets of width 1 and 2 on MNIST "
        f"answer one class for every image, {t2.adversarial[1].natural} percent natural and under attack. Pruned from "
        f"width 8 they reach {_pair(t2.pruned[8, 1])} at width 1 and {_pair(t2.pruned[8, 2])} at width 2."
    )
    weak = (
        f"It does not hold for all networks in the paper: ResNet-18 of width 1 trains from scratch on CIFAR-10 to "
        f"{_pair(t4.adversarial[1])}, and pruning adds {more:.1f} points under attack: "
        f"{_pair(t4.pruned[8, 1])} from width 8.",
        f"It depends on the initial weights: in the paper's Table B1 LeNet of width 1 reaches "
        f"{_pair(paper.TABLE_B1['uniform', 'Adam'])}, mean of 10 seeds, from a uniform initialisation with Adam.",
        "All networks from scratch are attacked with the full radius from the first step. The paper reports none whose "
        "radius rises over the first epochs.",
        "In the authors' code a pruned network has gone through three stages of training and a network from scratch "
        "through one. Here both get the same number of epochs.",
        *_PROCEDURE,
    )
    seen = [point for row in grid.rows for point in _of_width(grid, row)]
    verdict = [_recipes(grid, row) for row in grid.rows]
    verdict += [sentence for row in grid.rows for sentence in _pruning_against_scratch(grid, row)]
    return Page(
        "Can a small robust network be trained from scratch?",
        (
            Section("What the paper says", (says,)),
            Section("What we see", (_OF_RECIPE,), tuple(verdict)),
            Section("The numbers", (_READ,), tuple(seen)),
            Section("Where the claim is weak", (), weak),
        ),
    )


def _inherited(measured: Measured) -> Page:
    table = paper.TABLE_5
    stuck = [case for case, given in table.items() if given.natural < COLLAPSED]
    widths = sorted({str(to) for _, to in stuck})
    says = (
        "The paper says that the lottery ticket hypothesis does not hold under attack: a small network that is trained "
        "from the initial weights of the filters that pruning has kept does not reach the pruned one. Of the "
        f"{len(table)} networks in its Table 5, {len(stuck)} answer one class for every image, "
        f"{table[2, 1].natural} percent natural and under attack."
    )
    t2 = paper.TABLE_2
    weak = (
        f"All networks that collapse in the paper have width {' or '.join(widths)}, and 8 to 2 does not: "
        f"{_pair(table[8, 2])}.",
        f"At 8 to 4 and 16 to 8 the inherited weights do better under attack than the pruned network: "
        f"{table[8, 4].adversarial} against {t2.pruned[8, 4].adversarial}, and {table[16, 8].adversarial} against "
        f"{t2.pruned[16, 8].adversarial}. They also do better than training alone, {t2.adversarial[4].adversarial} at "
        f"width 4 and {t2.adversarial[8].adversarial} at width 8.",
        "Li et al., 2020 (arXiv:2003.05733) see the same collapse of a small network on MNIST and find winning "
        "tickets with VGG-16 on the same data. They conclude that the capacity was too small, not that the hypothesis "
        "is wrong.",
        "Random initial weights collapse at widths 1 and 2 in the paper too (Table 2), so the collapse does not "
        "tell inherited weights from random ones.",
        *_PROCEDURE,
    )
    return Page(
        "Can a small robust network be trained from the weights that a pruned one began with?",
        (
            Section("What the paper says", (says,)),
            Section("What we see", tuple(_inherited_summary(measured))),
            Section("The numbers", (_READ,), tuple(_inherited_points(measured))),
            Section("Where the claim is weak", (), weak),
        ),
    )


_READ = (
    "Numbers are natural / PGD accuracy in percent, means over seeds; in parentheses the lowest and the highest seed "
    "under PGD."
)
_OF_RECIPE = (
    f"A network below {COLLAPSED:g} percent natural accuracy is counted as collapsed. Paper's recipe: Adam with "
    "a constant learning rate of 0.0001, at the full radius from the first step. Its other settings are those of this "
    "scale."
)
_PROCEDURE = (
    "The paper's numbers are single runs, so we cannot say by how much two runs differ by chance.",
    "The paper reports the epoch that was best on the test set, so the images that measure have also chosen.",
)


def _of_width(grid: Grid, row: str) -> Iterator[str]:
    for column in (column for column in grid.columns if (row, column) in grid.cells):
        name, natural, pgd = f"{row}, {column}", grid.value(row, column, "natural"), grid.value(row, column, "PGD")
        if natural is None or pgd is None or not pgd.by_seed:
            yield f"{name}: no number yet."
            continue
        parts = [f"{name}: {_ours(natural, pgd)}, {as_seeds(pgd)}", *_collapse(natural)]
        auto = grid.value(row, column, "AutoAttack")
        if auto is not None:
            of_images = f" on {auto.num_images:,} images" if auto.by_seed else ""
            parts.append(f"AutoAttack {as_number(auto.mean)}{of_images}" if auto.by_seed else "AutoAttack is missing")
        if natural.paper is not None:
            parts.append(f"the paper has {as_number(natural.paper)} / {as_number(pgd.paper)}")
        yield f"{'; '.join(parts)}."


def _recipes(grid: Grid, row: str) -> str:
    """How many networks from scratch collapse by each recipe."""
    texts = []
    for column, words in (("paper's recipe", "by the paper's recipe"), ("with a ramp", "with a ramp")):
        value = grid.value(row, f"from scratch, {column}", "natural")
        if value is None or not value.by_seed:
            texts.append(f"the networks {words} are missing")
        else:
            count = sum(percent < COLLAPSED for percent in value.by_seed.values())
            texts.append(f"{count} of {len(value.by_seed)} networks collapse {words}")
    return f"At {row}, from scratch: {', '.join(texts)}."


def _pruning_against_scratch(grid: Grid, row: str) -> Iterator[str]:
    """One sentence for each pruned network of a width."""
    scratch = grid.value(row, "from scratch, with a ramp", "PGD")
    for column in (column for column in grid.columns if column.startswith("pruned") and (row, column) in grid.cells):
        pruned = grid.value(row, column, "PGD")
        name = f"At {row}, {column}"
        if scratch is None or pruned is None or not scratch.by_seed or not pruned.by_seed:
            which = "network from scratch" if scratch is None or not scratch.by_seed else "pruned network"
            yield f"{name}: the {which} is missing, so nothing can be said."
        else:
            yield f"{name}: {_compared(pruned, scratch, 'the pruned network', 'the one from scratch')}"


def _compared(ours: Value, other: Value, our_name: str, other_name: str) -> str:
    """Which of two has more under PGD, and whether the seeds allow to say so."""
    assert ours.mean is not None and other.mean is not None and ours.spread and other.spread
    more = ours.mean - other.mean
    first, second = (our_name, other_name) if more >= 0 else (other_name, our_name)
    text = f"{first} has {abs(more):.2f} points more under PGD than {second}"
    if min(len(ours.by_seed), len(other.by_seed)) < 2:
        return f"{text}; with one seed of either that may be chance."
    apart = ours.spread[0] > other.spread[1] or other.spread[0] > ours.spread[1]
    return f"{text}, and the ranges of the seeds {'do not overlap' if apart else 'overlap, so it may be chance'}."


def _inherited_summary(measured: Measured) -> Iterator[str]:
    done = [cell for cell in measured.cells if cell.values[0].by_seed]
    if not done:
        yield "No cell has a number yet, so nothing can be said."
        return
    stuck = [cell for cell in done if max(cell.values[0].by_seed.values()) < COLLAPSED]
    some = [cell for cell in done if min(cell.values[0].by_seed.values()) < COLLAPSED and cell not in stuck]
    yield (
        f"{len(done)} of {len(measured.cells)} cells have numbers. Of these, {len(stuck)} collapse with every seed, "
        f"{len(some)} with some, and {len(done) - len(stuck) - len(some)} with none. Below {COLLAPSED:g} percent "
        "natural accuracy a network is counted as collapsed."
    )
    theirs = [cell for cell in done if cell.values[0].paper is not None and cell.values[0].paper < COLLAPSED]
    if theirs:
        again = sum(cell in stuck for cell in theirs)
        yield f"Of the {len(theirs)} among them that collapse in the paper, {again} collapse here with every seed."


def _inherited_points(measured: Measured) -> Iterator[str]:
    for asked, cell in zip(measured.table.cells, measured.cells, strict=True):
        natural, pgd = cell.values
        name = f"{cell.row} {cell.column}"
        if not pgd.by_seed:
            yield f"{name}: no number yet."
            continue
        pruned = {}
        for seed, job in enumerate(asked.network):  # the pruned network that the weights are inherited from
            if seed in pgd.by_seed and job.needs[0].name in measured.results:
                pruned[seed] = 100 * read(measured.results[job.needs[0].name], "robust").accuracy
        parts = [f"{name}: {_ours(natural, pgd)}, {as_seeds(pgd)}", *_collapse(natural)]
        if natural.paper is not None:
            parts.append(f"the paper has {as_number(natural.paper)} / {as_number(pgd.paper)}")
        text = "; ".join(parts)
        other = pgd._replace(by_seed=pruned)
        if pruned:
            yield f"{text}. Compared: {_compared(pgd, other, 'the inherited network', 'the pruned one')}"
        else:
            yield f"{text}. The pruned network is missing."


def _ours(natural: Value, pgd: Value) -> str:
    spread = as_spread(pgd)
    return f"{as_number(natural.mean)} / {as_number(pgd.mean)}" + (f" ({spread})" if spread else "")


def _collapse(natural: Value) -> list[str]:
    count = sum(percent < COLLAPSED for percent in natural.by_seed.values())
    return [f"{count} of {len(natural.by_seed)} collapsed"] if count else []


def _pair(accuracies: paper.Accuracies) -> str:
    return f"{accuracies.natural:.2f} / {accuracies.adversarial:.2f}"


_PAGES: dict[str, Callable[[Measured], Page]] = {"scratch": _scratch, "5": _inherited}
