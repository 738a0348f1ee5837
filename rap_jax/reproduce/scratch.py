"""The paper's first claim, that a small network cannot be trained against an attack from scratch."""

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
    can_be_judged,
    compared,
    is_apart,
)
from rap_jax.reproduce.collect import Measured, Value
from rap_jax.reproduce.grid import Grid, as_grid
from rap_jax.reproduce.values import as_number, as_seeds

_RAMP = "from scratch, with a ramp"
_OF_RECIPE = (
    f"A network below {COLLAPSED:g} percent natural accuracy is counted as collapsed. Paper's recipe: Adam with "
    "a constant learning rate of 0.0001, at the full radius from the first step; its other settings (steps of the "
    "attack, batch, epochs) are those of this scale. With a ramp: the recipe by which all other networks of this scale "
    "are trained. The two differ in three things, radius, learning rate and its decay; this table does not tell which "
    "of them keeps a network from collapsing."
)


def scratch_page(measured: Measured) -> Page:
    """What the paper says, what we see, what is left of the claim, and where it is weak."""
    grid, t2, t4 = as_grid(measured), paper.TABLE_2, paper.TABLE_4
    more = t4.pruned[8, 1].adversarial - t4.adversarial[1].adversarial
    says = (
        "The paper says that a small network cannot be trained against an attack from scratch, and that pruning a "
        "larger one while it is attacked gives what training alone does not. Its LeNets of width 1 and 2 on MNIST "
        f"answer one class for every image, {t2.adversarial[1].natural} percent natural and under attack. Pruned from "
        f"width 8 they reach {as_pair(t2.pruned[8, 1])} at width 1 and {as_pair(t2.pruned[8, 2])} at width 2."
    )
    weak = (
        f"It does not hold for all networks in the paper: ResNet-18 of width 1 trains from scratch on CIFAR-10 to "
        f"{as_pair(t4.adversarial[1])}, and pruning adds {more:.1f} points under attack: "
        f"{as_pair(t4.pruned[8, 1])} from width 8.",
        f"It depends on the initial weights: in the paper's Table B1 LeNet of width 1 reaches "
        f"{as_pair(paper.TABLE_B1['uniform', 'Adam'])}, mean of 10 seeds, from a uniform initialisation with Adam.",
        "All networks from scratch in the paper are attacked with the full radius from the first step; it reports none "
        "whose radius rises over the first epochs.",
        "In the authors' code a pruned network has gone through three stages of training and a network from scratch "
        "through one. Here both get the same number of epochs.",
        *PROCEDURE,
    )
    seen = [point for row in grid.rows for point in _of_width(grid, row)]
    verdict = [_recipes(grid, row) for row in grid.rows]
    verdict += [sentence for row in grid.rows for sentence in _pruning_against_scratch(grid, row)]
    return Page(
        "Can a small robust network be trained from scratch?",
        (
            Section("What the paper says", (says,)),
            Section("What we see", (_OF_RECIPE,), tuple(verdict)),
            Section("What is left of it", (), tuple(_left(grid))),
            Section("The numbers", (READ,), tuple(seen)),
            Section("Where the claim is weak", (), weak),
        ),
    )


def _of_width(grid: Grid, row: str) -> Iterator[str]:
    for column in (column for column in grid.columns if (row, column) in grid.cells):
        name, natural, pgd = f"{row}, {column}", grid.value(row, column, "natural"), grid.value(row, column, "PGD")
        if natural is None or pgd is None or not pgd.by_seed:
            yield f"{name}: no number yet."
            continue
        parts = [f"{name}: {as_accuracies(natural, pgd)}, {as_seeds(pgd)}", *as_collapse(natural)]
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
    scratch = grid.value(row, _RAMP, "PGD")
    for column in (column for column in grid.columns if column.startswith("pruned") and (row, column) in grid.cells):
        pruned = grid.value(row, column, "PGD")
        name = f"At {row}, {column}"
        if scratch is None or pruned is None or not scratch.by_seed or not pruned.by_seed:
            which = "network from scratch" if scratch is None or not scratch.by_seed else "pruned network"
            yield f"{name}: the {which} is missing, so nothing can be said."
        else:
            yield f"{name}: {compared(pruned, scratch, 'the pruned network', 'the one from scratch')}"


def _left(grid: Grid) -> Iterator[str]:
    """What the claim is worth by our numbers: whether size makes networks collapse, and what pruning adds."""
    trained = [value for row in grid.rows if (value := _done(grid, row, _RAMP, "natural"))]
    networks = [percent for value in trained for percent in value.by_seed.values()]
    stuck = sum(percent < COLLAPSED for percent in networks)
    if not networks:
        yield "Nothing can be said yet: no network from scratch with a ramp is done."
        return
    if stuck:
        yield f"{stuck} of {len(networks)} networks from scratch collapse by the recipe with a ramp, too."
    else:
        yield (
            f"None of {len(networks)} networks from scratch collapses by the recipe with a ramp: what collapses by the "
            "paper's recipe is the way a small network is trained, not what it can hold."
        )
    for row in grid.rows:
        gains = [text for label in ("PGD", "AutoAttack") if (text := _gain(grid, row, label))]
        if gains:
            yield f"At {row} pruning gives, over training from scratch for as many epochs, {' and '.join(gains)}."


def _gain(grid: Grid, row: str, label: str) -> str:
    """Points that the pruned networks of a width have more, and for how many of them seeds show it; "" without any."""
    scratch = _done(grid, row, _RAMP, label)
    columns = [column for column in grid.columns if column.startswith("pruned")]
    pruned = [value for column in columns if (value := _done(grid, row, column, label))]
    if scratch is None or not pruned:
        return ""
    more = sorted((value.mean or 0) - (scratch.mean or 0) for value in pruned)
    points = " to ".join(dict.fromkeys(f"{each:+.2f}" for each in (more[0], more[-1])))
    judged = [value for value in pruned if can_be_judged(value, scratch)]
    shown = sum(is_apart(value, scratch) for value in judged)
    words = [f"the ranges of the seeds are apart for {shown} of {len(judged)}"] if judged else []
    if single := len(pruned) - len(judged):
        words.append(f"{single} with one seed cannot be judged")
    return f"{points} points under {label} ({'; '.join(words)})"


def _done(grid: Grid, row: str, column: str, label: str) -> Value | None:
    """The value of a cell, if a seed of it is done."""
    value = grid.value(row, column, label) if (row, column) in grid.cells else None
    return value if value is not None and value.by_seed else None
