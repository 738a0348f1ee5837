"""The paper's claim about inherited initial weights (lottery tickets), beside our numbers."""

from collections.abc import Iterator

from rap_jax.reproduce import paper
from rap_jax.reproduce.claim import (
    COLLAPSED,
    PROCEDURE,
    READ,
    Page,
    Section,
    as_accuracies,
    as_collapse,
    as_pair,
    compared,
)
from rap_jax.reproduce.collect import Measured
from rap_jax.reproduce.readings import read
from rap_jax.reproduce.values import as_number, as_seeds


def inherited_page(measured: Measured) -> Page:
    """What the paper says, what we see, and where the claim is weak."""
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
        f"{as_pair(table[8, 2])}.",
        f"At 8 to 4 and 16 to 8 the inherited weights do better under attack than the pruned network: "
        f"{table[8, 4].adversarial} against {t2.pruned[8, 4].adversarial}, and {table[16, 8].adversarial} against "
        f"{t2.pruned[16, 8].adversarial}. They also do better than training alone, {t2.adversarial[4].adversarial} at "
        f"width 4 and {t2.adversarial[8].adversarial} at width 8.",
        "Li et al., 2020 (arXiv:2003.05733) see the same collapse of a small network on MNIST and find winning "
        "tickets with VGG-16 on the same data. They conclude that the capacity was too small, not that the hypothesis "
        "is wrong.",
        "Random initial weights collapse at widths 1 and 2 in the paper too (Table 2), so the collapse does not "
        "tell inherited weights from random ones.",
        *PROCEDURE,
    )
    return Page(
        "Can a small robust network be trained from the weights that a pruned one began with?",
        (
            Section("What the paper says", (says,)),
            Section("What we see", tuple(_summary(measured))),
            Section("The numbers", (READ,), tuple(_points(measured))),
            Section("Where the claim is weak", (), weak),
        ),
    )


def _summary(measured: Measured) -> Iterator[str]:
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


def _points(measured: Measured) -> Iterator[str]:
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
        parts = [f"{name}: {as_accuracies(natural, pgd)}, {as_seeds(pgd)}", *as_collapse(natural)]
        if natural.paper is not None:
            parts.append(f"the paper has {as_number(natural.paper)} / {as_number(pgd.paper)}")
        text = "; ".join(parts)
        other = pgd._replace(by_seed=pruned)
        if pruned:
            yield f"{text}. Compared: {compared(pgd, other, 'the inherited network', 'the pruned one')}"
        else:
            yield f"{text}. The pruned network is missing."
