"""Masks by given scores and at random: exact counts, whole structures, zeros first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax.pruning.masks import apply_masks
from rap_jax.pruning.projections import Column, Filter, Irregular
from rap_jax.pruning.scores import masks_by_score, random_masks, structure_norms
from rap_jax.pruning.specs import masks_of

PARAMS = {
    "conv1": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 4)), "bias": jnp.ones(4)},
    "fc1": {"kernel": jax.random.normal(jax.random.key(1), (6, 4)), "bias": jnp.ones(4)},
}
NAMES = ("conv1/kernel", "fc1/kernel")
KERNELS = {"conv1/kernel": PARAMS["conv1"]["kernel"], "fc1/kernel": PARAMS["fc1"]["kernel"]}


@pytest.mark.parametrize("budget", ["layer", "global"])
@pytest.mark.parametrize("kind", [Irregular, Filter, Column])
def test_the_norms_as_scores_give_the_masks_of_magnitude(kind: type, budget: str) -> None:
    specs = {name: kind(0.5, budget) for name in NAMES}
    scores = {name: structure_norms(specs[name], KERNELS[name]) for name in NAMES}
    if budget == "global" and kind is not Irregular:  # magnitudes are compared by weight
        scores = {name: norms / np.sqrt(KERNELS[name].size / norms.size) for name, norms in scores.items()}
    found = masks_by_score(specs, PARAMS, scores)
    for mask, expected in zip(jax.tree.leaves(found), jax.tree.leaves(masks_of(specs, PARAMS)), strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_the_sign_of_a_score_does_not_count() -> None:
    scores = {"fc1/kernel": jnp.array([[3.0, -4.0, 1.0, -2.0]])}
    masks = masks_by_score({"fc1/kernel": Filter(0.5)}, PARAMS, scores)
    np.testing.assert_array_equal(masks["fc1"]["bias"], [True, True, False, False])
    np.testing.assert_array_equal(masks["fc1"]["kernel"], np.tile([True, True, False, False], (6, 1)))
    assert masks["conv1"]["kernel"].all()


@pytest.mark.parametrize("kind,kept", [(Irregular, (18, 6)), (Filter, (18, 6)), (Column, (16, 4))])
def test_random_masks_have_the_exact_count_and_another_key_draws_others(kind: type, kept: tuple[int, int]) -> None:
    specs = {name: kind(0.75) for name in NAMES}
    draw = jax.jit(lambda key: random_masks(specs, PARAMS, key))
    first, second = (draw(jax.random.key(seed)) for seed in (0, 1))
    for masks in (first, second):
        assert tuple(int(masks[name]["kernel"].sum()) for name in ("conv1", "fc1")) == kept
    assert (first["conv1"]["kernel"] != second["conv1"]["kernel"]).any()
    if kind is Filter:
        np.testing.assert_array_equal(first["fc1"]["bias"], first["fc1"]["kernel"].all(0))


def test_every_filter_is_drawn_equally_often() -> None:
    draw = jax.vmap(lambda key: random_masks({"fc1/kernel": Filter(0.5)}, PARAMS, key)["fc1"]["bias"])
    share = draw(jax.random.split(jax.random.key(3), 400)).mean(0)
    np.testing.assert_allclose(share, 0.5, atol=4 * 0.5 / np.sqrt(400))


@pytest.mark.parametrize("kind", [Irregular, Filter, Column])
def test_zeros_go_first_so_a_second_draw_changes_nothing(kind: type) -> None:
    specs = {name: kind(0.5) for name in NAMES}
    cut = apply_masks(random_masks(specs, PARAMS, jax.random.key(0)), PARAMS)
    again = apply_masks(random_masks(specs, cut, jax.random.key(1)), cut)
    for first, second in zip(jax.tree.leaves(cut), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(first, second)
