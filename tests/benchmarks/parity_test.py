"""How two sides are compared in `benchmarks.parity`: a bar that cannot fail would show nothing."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.parity.compare import Bar, path_bars, path_errors, rows_of, share_bar
from benchmarks.parity.kept import Kept, NotDoneError
from benchmarks.parity.statistics import agreement, least_agreement, mcnemar
from benchmarks.parity.stream import official_places, our_corners
from benchmarks.parity.traces import Path as AttackPath

pytestmark = pytest.mark.usefixtures("optimised")


def flags(*numbers: int) -> np.ndarray:
    return np.array(numbers, bool)


def test_agreement_is_the_lowest_over_pairs() -> None:
    one, two, three = flags(1, 1, 0, 0), flags(1, 1, 0, 1), flags(0, 1, 1, 1)
    assert agreement(one, two) == 0.75
    assert least_agreement([one, two, three]) == 0.25
    assert least_agreement([one], [two]) == 0.75
    assert least_agreement([one]) == 1.0


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"), [(0, 0, 1.0), (1, 1, 1.0), (8, 0, 2 / 2**8), (3, 1, 0.625)]
)
def test_mcnemar_by_hand(only_first: int, only_second: int, p: float) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True, False])
    second = np.array([False] * only_first + [True] * only_second + [True, False])
    assert mcnemar(first, second) == pytest.approx(p)


def test_bars_of_an_attack_share_a_row_that_fails_with_any_of_them() -> None:
    holds, fails, says = Bar("loss", 1e-7, 1e-6, attack="a"), share_bar("same", flags(1, 0), 0.9, "a"), Bar("b", 2.0)
    rows = rows_of([holds, fails, says])
    assert rows["a"]["found"] == "loss 1.0e-07; same 50.00%" and rows["a"]["bar"] == "≤ 1.0e-06; ≥ 90.00%"
    assert rows["a"]["passed"] is False and rows["a"]["verdict"] == "FAILS"
    assert rows[""]["passed"] is None and rows[""]["verdict"] is None
    assert rows_of([holds])["a"]["passed"] is True


def test_not_a_number_does_not_pass() -> None:
    assert not Bar("loss", float("nan"), 1e-6).passed
    assert not Bar("share", float("nan"), 0.9, at_least=True).passed


def path(moved_at: int | None) -> AttackPath:
    """Of 3 examples; the second is misclassified from query 2 on. One query of all is moved by 1e-3."""
    images = np.zeros((5, 3, 2, 2, 1))
    if moved_at is not None:
        images[moved_at] += 1e-3
    wrong = np.zeros((5, 3), bool)
    wrong[2:, 1] = True
    return AttackPath(np.arange(5), images, np.zeros((5, 3)), wrong, wrong.any(0), np.zeros(3))


@pytest.mark.parametrize(("moved_at", "same"), [(None, 3), (1, 0), (2, 0), (3, 1)])
def test_a_path_counts_up_to_the_first_misclassified_image(moved_at: int | None, same: int) -> None:
    errors = path_errors(path(moved_at), path(None), "linf")
    assert (errors.images <= 1e-4).sum() == same
    assert path_bars("apgd", [errors])[0].passed is (same == 3)


def test_finished_pieces_are_not_done_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path, {"epsilon": 0.3})
    with pytest.raises(NotDoneError):
        kept.get("a", lambda: {"x": 1}, may_run=False)
    assert kept.get("a", lambda: {"x": 1}, may_run=True) == {"x": 1}
    assert Kept(tmp_path, {"epsilon": 0.3}).get("a", lambda: {"x": 2}, may_run=True) == {"x": 1}
    with pytest.raises(ValueError, match=r"epsilon"):
        Kept(tmp_path, {"epsilon": 0.1})


def test_windows_are_where_the_official_code_puts_them() -> None:
    corners = np.random.default_rng(0).random(1000, np.float32)
    for length, side in [(10, 3), (28, 27), (28, 28), (28, 1)]:
        sides = np.full(len(corners), side)
        places = official_places(corners, sides, length)
        ours = np.floor(our_corners(places, sides, length) * (length - side + 1)).astype(int)
        assert (ours == places).all() and (places + side <= length).all()
