"""What is said of a claim of the paper follows from the numbers, and without numbers nothing is said."""

from collections.abc import Callable
from pathlib import Path

import fake_results as fake
import pytest

from rap_jax.reproduce.claim import Page
from rap_jax.reproduce.collect import collect
from rap_jax.reproduce.hypotheses import hypothesis
from rap_jax.reproduce.job import Job
from rap_jax.reproduce.scale import scale_of
from rap_jax.reproduce.tables import build_table

STUCK = (0.1135, 0.1135, 0.1135)
Pgd = Callable[[Job], float]


def page_of(out: Path, name: str, pgd: Pgd, *, without: str = "nothing", num_seeds: int = 2) -> Page:
    """The page of a table to width 4; a PGD accuracy of 0.1135 is that of a collapsed network."""
    scale = scale_of("quick", max_width=4, num_seeds=num_seeds)
    table = build_table(name, scale)

    def accuracies(job: Job) -> tuple[float, float, float]:
        robust = pgd(job)
        return STUCK if robust == STUCK[1] else (0.97, robust, robust - 0.02)

    fake.fill(out, table, accuracies, without=lambda job: without in job.name)
    page = hypothesis(collect(table, out))
    assert page is not None
    return page


def section(page: Page, heading: str) -> str:
    (found,) = (section for section in page.sections if section.heading == heading)
    return "\n".join((*found.paragraphs, *found.points))


def pruning_gains(more: float) -> Pgd:
    """Collapse by the paper's recipe; pruning gives more than training alone, which has 80 and 81."""

    def pgd(job: Job) -> float:
        if "paper_recipe" in job.name:
            return STUCK[1]
        return 0.80 + 0.01 * fake.seed_of(job) + (more if "_admm_" in job.name else 0)

    return pgd


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (0.05, ("the pruned network has 5.00 points more under PGD than the one from scratch", "do not overlap.")),
        (
            0.005,
            (
                "the pruned network has 0.50 points more under PGD than the one from scratch",
                "overlap, so it may be chance.",
            ),
        ),
        (-0.03, ("the one from scratch has 3.00 points more under PGD than the pruned network", "do not overlap.")),
    ],
)
def test_pruning_is_compared_with_training_alone(tmp_path: Path, more: float, expected: tuple[str, str]) -> None:
    seen = section(page_of(tmp_path, "scratch", pruning_gains(more)), "What we see")
    words = f"pruned from 4: {expected[0]}, and the ranges of the seeds {expected[1]}"
    assert f"At w=1, {words}" in seen
    assert f"At w=2, {words}" in seen
    assert "At w=1, from scratch: 2 of 2 networks collapse by the paper's recipe, 0 of 2 networks collapse" in seen


def test_one_seed_shows_nothing(tmp_path: Path) -> None:
    seen = section(page_of(tmp_path, "scratch", pruning_gains(0.05), num_seeds=1), "What we see")
    assert "with one seed of either that may be chance" in seen
    assert "overlap" not in seen


def left(out: Path, pgd: Pgd, **more: int) -> str:
    return section(page_of(out, "scratch", pgd, **more), "What is left of it")


def test_what_is_left_of_the_claim(tmp_path: Path) -> None:
    ramp = "None of 4 networks from scratch collapses by the recipe with a ramp"
    gain = (
        "At w=1 pruning gives, over training from scratch for as many epochs, {} points under PGD (the ranges of the "
        "seeds are apart for {} of 1)"
    )
    text = left(tmp_path / "more", pruning_gains(0.05))
    assert ramp in text and gain.format("+5.00", 1) in text and "and +5.00 points under AutoAttack (" in text
    assert gain.format("-3.00", 1) in left(tmp_path / "less", pruning_gains(-0.03))
    assert gain.format("+0.50", 0) in left(tmp_path / "overlap", pruning_gains(0.005))
    assert "+5.00 points under PGD (1 with one seed cannot be judged) and" in left(
        tmp_path / "one", pruning_gains(0.05), num_seeds=1
    )
    text = left(tmp_path / "stuck", lambda job: STUCK[1] if "_scratch_w1" in job.name else 0.8)
    assert text.startswith("2 of 4 networks from scratch collapse by the recipe with a ramp, too.")


def test_of_nothing_nothing_is_left(tmp_path: Path) -> None:
    page = page_of(tmp_path, "scratch", pruning_gains(0.05), without="_scratch_w")
    assert section(page, "What is left of it").startswith("Nothing can be said yet")


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        ("_scratch_w1", "At w=1, pruned from 4: the network from scratch is missing, so nothing can be said."),
        ("_admm_w4_to_w1", "At w=1, pruned from 4: the pruned network is missing, so nothing can be said."),
        ("paper_recipe_w1", "At w=1, from scratch: the networks by the paper's recipe are missing, 0 of 2 networks"),
    ],
)
def test_what_is_missing_is_not_claimed(tmp_path: Path, without: str, expected: str) -> None:
    page = page_of(tmp_path, "scratch", pruning_gains(0.05), without=without)
    assert expected in section(page, "What we see")
    assert "no number yet" in section(page, "The numbers")


def test_the_numbers_of_scratch_are_ours(tmp_path: Path) -> None:
    points = section(page_of(tmp_path, "scratch", pruning_gains(0.05)), "The numbers")
    assert "w=1, from scratch, with a ramp: 97.00 / 80.50 (80.00 to 81.00), 2 seeds; AutoAttack 78.50 on" in points
    assert (
        "w=1, from scratch, paper's recipe: 11.35 / 11.35 (11.35 to 11.35), 2 seeds; 2 of 2 collapsed; the paper"
        in points
    )
    assert "w=2, pruned from 4: 97.00 / 85.50 (85.00 to 86.00), 2 seeds; AutoAttack 83.50" in points
    assert "the paper has 97.68 / 91.77." in points


def inherited(job: Job) -> float:
    """Of the inherited networks 2 to 1 collapses, and one seed of 4 to 1; the others have 70 and 71, pruned ones 90."""
    if "_inherited_" not in job.name:
        return 0.90
    stuck = "w2_to_w1" in job.name or job.name.endswith("w4_to_w1_seed1")
    return STUCK[1] if stuck else 0.70 + 0.01 * fake.seed_of(job)


def test_collapsed_cells_are_counted(tmp_path: Path) -> None:
    seen = section(page_of(tmp_path, "5", inherited), "What we see")
    assert "3 of 3 cells have numbers. Of these, 1 collapse with every seed, 1 with some, and 1 with none." in seen
    assert "Of the 3 among them that collapse in the paper, 1 collapse here with every seed." in seen


def test_inherited_is_compared_with_pruned(tmp_path: Path) -> None:
    points = section(page_of(tmp_path, "5", inherited), "The numbers")
    assert "w=4 to 2: 97.00 / 70.50 (70.00 to 71.00), 2 seeds; the paper has 11.35 / 11.35." in points
    assert "the pruned one has 19.50 points more under PGD than the inherited network, and the ranges" in points
    assert "w=4 to 1: 54.18 / 40.68 (11.35 to 70.00), 2 seeds; 1 of 2 collapsed" in points


def test_an_inherited_cell_without_numbers(tmp_path: Path) -> None:
    page = page_of(tmp_path, "5", inherited, without="_inherited_w4_to_w2")
    assert "w=4 to 2: no number yet." in section(page, "The numbers")
    assert "2 of 3 cells have numbers." in section(page, "What we see")
    nothing = page_of(tmp_path / "new", "5", inherited, without="_inherited_")
    assert section(nothing, "What we see") == "No cell has a number yet, so nothing can be said."


def test_other_tables_have_no_page(tmp_path: Path) -> None:
    measured = collect(build_table("2", scale_of("quick", max_width=2)), tmp_path)
    assert hypothesis(measured) is None


def test_the_weakness_is_named(tmp_path: Path) -> None:
    weak = section(page_of(tmp_path, "5", inherited), "Where the claim is weak")
    assert "arXiv:2003.05733" in weak
    assert "94.66 against 94.27, and 95.49 against 95.44" in weak
    assert "single runs" in section(page_of(tmp_path, "scratch", pruning_gains(0)), "Where the claim is weak")
