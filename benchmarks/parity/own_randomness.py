"""Both sides under their own seeds: single parts of AutoAttack, each on all examples, and the whole version `standard`.

The bars are those of a port of AutoAttack: the success of a part on each example agrees as well as that of the official
code under two seeds, less 1 point; McNemar's exact test finds no difference at 1%; robust accuracy under the whole
ensemble within 0.5 points, and the worst case of both not more than 0.5 points below either.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.parity.compare import Bar, rows_of
from benchmarks.parity.kept import Answer, Kept
from benchmarks.parity.ours import component_alone
from benchmarks.parity.statistics import least_agreement, mcnemar
from benchmarks.parity.subject import Subject
from benchmarks.pytorch.official_autoattack import STANDARD, lenet_of, run_autoattack
from benchmarks.records import Rows
from rap_jax.attacks import ThreatModel
from rap_jax.evaluation.auto_attack import auto_attack

# APGD-T, FAB-T and Square have one restart on both sides, and so have APGD-CE and APGD-DLR here as in `standard`.
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
# Draws nothing in its only restart.
_WITHOUT_SEED = ("fab-t",)
_NUM_KEYS = 2
_POINT = 0.01


class Ways(NamedTuple):
    """Attacks on one network, as functions of a part and a seed. Attributes: ours, official."""

    ours: Callable[[str, int], Answer]
    official: Callable[[str, int], Answer]


def ways_of(load: Callable[[], Subject], epsilon: float) -> Ways:
    """Both sides, L-infinity; the network is loaded when the first of them runs."""
    return Ways(
        ours=lambda part, seed: _timed(load(), lambda subject: attack_by_ours(subject, part, epsilon, seed)),
        official=lambda part, seed: _timed(load(), lambda subject: attack_by_official(subject, part, epsilon, seed)),
    )


def attack_by_ours(subject: Subject, part: str, epsilon: float, seed: int) -> np.ndarray:
    """Which examples are right and stay so, bool [N]."""
    num_classes, threat_model = len(subject.state["fc2.bias"]), ThreatModel("linf", epsilon)
    settings: dict[str, Any] = {"threat_model": threat_model, "key": jax.random.key(seed), "diagnostics": False}
    if part != STANDARD:
        settings["components"] = (component_alone(part, threat_model=threat_model, num_classes=num_classes),)
    return auto_attack(subject.logits_fn, subject.images, subject.labels, **settings).robust


def attack_by_official(subject: Subject, part: str, epsilon: float, seed: int) -> np.ndarray:
    """Which examples are right and stay so, bool [N]."""
    network = lenet_of(subject.state)
    return run_autoattack(network, subject.images, subject.labels, part, norm="linf", epsilon=epsilon, seed=seed)


def _timed(subject: Subject, attack: Callable[[Subject], np.ndarray]) -> Answer:
    begun = time.perf_counter()
    robust = attack(subject)
    seconds = time.perf_counter() - begun
    right = np.asarray(jax.jit(subject.logits_fn)(subject.images)).argmax(1) == subject.labels
    return {"robust": robust.astype(int).tolist(), "right": right.astype(int).tolist(), "seconds": seconds}


def part_rows(kept: Kept, ways: Ways, part: str, *, num_seeds: int, may_run: bool) -> Rows:
    """Rows of the table about one part alone.

    Raises:
      NotDoneError: pieces are missing, and `may_run` is False.
    """
    alone = part in _WITHOUT_SEED
    seeds = {"ours": 1 if alone else _NUM_KEYS, "official": 1 if alone else num_seeds}
    found = _ask(kept, ways, part, seeds, may_run)
    right = np.array(found["ours"][0]["right"], bool)
    ours, official = (_flags(found[side], right) for side in ("ours", "official"))
    # With one of ours both sides have as many pairs: the least of more would be lower by chance.
    within = least_agreement(official)
    bars = [
        Bar("agreement", least_agreement(ours[:1], official), within - _POINT, at_least=True, format=".2%"),
        Bar("p", mcnemar(ours[0], official[0]), 0.01, at_least=True, format=".3f"),
    ]
    row = _accuracies(found) | {"num_examples": int(right.sum()), "least_agreement_of_official": within}
    row["all p"] = [mcnemar(mine, theirs) for mine in ours for theirs in official]
    return {name: found_row | row for name, found_row in rows_of(bars).items()}


def standard_rows(kept: Kept, ways: Ways, *, may_run: bool) -> Rows:
    """Rows about the whole version `standard`; raises as `part_rows` does."""
    found = _ask(kept, ways, STANDARD, {"ours": 1, "official": 1}, may_run)
    ours, official = (np.array(found[side][0]["robust"], bool) for side in ("ours", "official"))
    points = lambda count: 100 * int(count) / len(ours)  # of counts: 5 of 1,000 are 0.5 exactly
    below = points(min(ours.sum(), official.sum()) - (ours & official).sum())
    bars = [
        Bar("difference", points(abs(int(ours.sum()) - int(official.sum()))), 0.5, format=".2f"),
        Bar("both, below", below, 0.5, format=".2f"),
    ]
    return {name: row | _accuracies(found) for name, row in rows_of(bars).items()}


def _ask(kept: Kept, ways: Ways, part: str, seeds: Mapping[str, int], may_run: bool) -> dict[str, list[Answer]]:
    """Answers of both sides, in turn by seed as far as both go."""
    found: dict[str, list[Answer]] = {side: [] for side in seeds}
    for seed in range(max(seeds.values())):
        for side, way in ways._asdict().items():
            if seed < seeds[side]:
                make = lambda way=way, seed=seed: way(part, seed)
                found[side].append(kept.get(f"{part} {side} {seed}", make, may_run=may_run))
    return found


def _flags(answers: Sequence[Answer], right: np.ndarray) -> list[np.ndarray]:
    """Of the examples that are right: which are broken."""
    return [~np.array(answer["robust"], bool)[right] for answer in answers]


def _accuracies(found: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """Robust accuracies in words, and seconds, compilation included."""
    row: dict[str, Any] = {}
    for side, answers in found.items():
        name = "rap_jax" if side == "ours" else side
        row[f"{name}_robust"] = ", ".join(f"{np.mean(answer['robust']):.1%}" for answer in answers)
        row[f"{name}_seconds"] = [answer["seconds"] for answer in answers]
    return row
