"""What the evaluations of a table found that should make one doubt its numbers, and how far AutoAttack's parts differ.

The paper reports PGD alone. Where Square, which uses no gradients, breaks images that all attacks with gradients have
left, the gradients mislead, and PGD says more than is true.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rap_jax.reproduce.collect import Measured
from rap_jax.reproduce.values import NOTHING, as_number

TITLE = "Whether the attacks can be believed"
ABOUT = (
    "Percent of the attacked images: what those parts of AutoAttack leave that use gradients, what Square, which uses "
    "none, breaks of these, and what is left in the end. The more Square breaks, the more the gradients mislead, and "
    "PGD, in which the paper reports, says more than is true. Warnings: of the evaluation."
)
HEADER = ("Cell", "Seed", "Gradients leave", "Square breaks", "AutoAttack leaves", "Warnings")


class Doubt(NamedTuple):
    """One evaluation.

    Attributes:
      row, column: of the cell.
      seed: of the network.
      with_gradients: percent that the parts of AutoAttack with gradients leave; None without AutoAttack.
      square: percent that Square breaks of these; None likewise.
      auto_attack: percent that is left in the end; None likewise.
      findings: name -> text.
    """

    row: str
    column: str
    seed: int
    with_gradients: float | None
    square: float | None
    auto_attack: float | None
    findings: dict[str, str]


def doubts(measured: Measured) -> tuple[Doubt, ...]:
    """Of each evaluation with AutoAttack or with a finding, in the table's order."""
    return tuple(doubt for doubt in _all(measured) if doubt.auto_attack is not None or doubt.findings)


def as_cells(doubt: Doubt) -> tuple[str, ...]:
    """The texts below `HEADER`."""
    numbers = map(as_number, (doubt.with_gradients, doubt.square, doubt.auto_attack))
    return (f"{doubt.row}, {doubt.column}", str(doubt.seed), *numbers, ", ".join(doubt.findings) or NOTHING)


def explanations(found: Sequence[Doubt]) -> tuple[tuple[str, str], ...]:
    """Each warning once, with its text of the first evaluation that has it."""
    texts: dict[str, str] = {}
    for doubt in found:
        for name, text in doubt.findings.items():
            texts.setdefault(name, f"{doubt.row}, {doubt.column}, seed {doubt.seed}: {text}")
    return tuple(texts.items())


def _all(measured: Measured) -> Iterator[Doubt]:
    for cell in measured.cells:
        for value in cell.values:
            for seed in value.by_seed:
                results = measured.results[value.jobs[seed].name]
                findings = {each["name"]: each["text"] for each in results.get("findings", [])}
                yield Doubt(cell.row, cell.column, seed, *_parts(results), findings)


def _parts(results: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    attack = results.get("auto_attack") or {"parts": []}
    square = next((part for part in attack["parts"] if part["name"] == "square"), None)
    if square is None:
        return None, None, None
    broken = square["broken"] / results["clean"]["num_examples"]
    left = attack["robust_accuracy"]
    return 100 * (left + broken), 100 * broken, 100 * left
