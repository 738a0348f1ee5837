"""The attacks of AutoAttack against what the official code made of a tiny network, in `reference/autoattack.npz`.

The file is made by `python -m benchmarks.autoattack_parity --write_reference`; see `benchmarks.parity`.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.parity import compare, ours, reference
from benchmarks.parity.compare import Bar
from benchmarks.parity.reference import EPSILONS, NUM_QUERIES, NUM_STEPS, RANKS
from benchmarks.parity.tiny_network import NUM_CLASSES, logits_fn
from rap_jax.attacks import ThreatModel
from rap_jax.attacks.apgd import Apgd
from rap_jax.attacks.hyperplane import ONTO_HYPERPLANE
from rap_jax.attacks.square import Square

pytestmark = pytest.mark.usefixtures("optimised")

REFERENCE = reference.read(Path(__file__).parent / "reference/autoattack.npz")
NETWORK = logits_fn(REFERENCE.weights)
both_norms = pytest.mark.parametrize("norm", list(EPSILONS))


def check(*bars: Bar) -> None:
    assert all(bar.passed is not False for bar in bars), bars


def test_the_losses_and_their_gradients() -> None:
    logits, targets = REFERENCE.arrays["logits"], REFERENCE.arrays["targets"]
    found = ours.loss_values(logits, REFERENCE.labels, targets)
    check(*compare.loss_bars(found, {name: REFERENCE.losses(name) for name in found}))


@both_norms
def test_the_projections(norm: str) -> None:
    arrays = {name: REFERENCE.arrays[f"{norm}/projection/{name}"] for name in ("points", "weights", "height", "found")}
    found = jax.jit(ONTO_HYPERPLANE[norm])(arrays["points"], arrays["weights"], arrays["height"])
    check(compare.projection_bar(np.asarray(found), arrays["found"]))


@both_norms
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t"])
def test_apgd_goes_the_same_way(norm: str, name: str) -> None:
    loss, num_targets = {"apgd-ce": ("ce", 0), "apgd-dlr": ("dlr", 0), "apgd-t": ("ce", NUM_CLASSES - 1)}[name]
    attack = Apgd(ThreatModel(norm, EPSILONS[norm]), loss, NUM_STEPS, num_targets=num_targets)
    found = ours.apgd_recorder(NETWORK, attack)((REFERENCE.images, REFERENCE.labels, REFERENCE.first(norm)), 0)
    theirs = REFERENCE.path(norm, name)
    errors = compare.path_errors(found, theirs, norm)
    check(*compare.path_bars(name, [errors]))
    assert errors.losses.max() <= 1e-4
    assert 0 < theirs.broken.mean() < 1  # or success is nothing to agree on


@both_norms
def test_targeted_fab_finds_the_same_images(norm: str) -> None:
    threat_model = ThreatModel(norm, EPSILONS[norm])
    component = ours.component_alone("fab-t", threat_model=threat_model, num_classes=NUM_CLASSES)
    attack = dataclasses.replace(component.attack, num_steps=NUM_STEPS)  # type: ignore[type-var]
    theirs = REFERENCE.nearest(norm, "fab-t")
    found = ours.fab_nearest(NETWORK, attack, REFERENCE.images, REFERENCE.labels, range(len(RANKS)))
    check(*compare.nearest_bars("fab-t", found, theirs))
    assert 0 < theirs.broken.mean() < 1


@both_norms
def test_square_goes_the_same_way(norm: str) -> None:
    attack = Square(ThreatModel(norm, EPSILONS[norm]), NUM_QUERIES)
    found = ours.square_search(NETWORK, attack, REFERENCE.images, REFERENCE.labels, REFERENCE.stream(norm))
    theirs = REFERENCE.search(norm)
    check(*compare.search_bars("square", found, theirs))
    assert 0 < theirs.broken.mean() < 1
