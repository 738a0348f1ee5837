"""HYDRA and HARP against their rules in NumPy, on arrays of a few numbers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rap_jax.pruning.layers import leaves_by_name
from rap_jax.pruning.learned_scores import LearnedRates, learn_scores
from rap_jax.pruning.masks import apply_state_masks
from rap_jax.pruning.projections import BatchNormFilter, Column, Filter, Irregular

W = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
PARAMS = {"fc1": {"kernel": jnp.asarray(W), "bias": jnp.arange(1.0, 5.0)}}
GRADIENTS = [np.random.default_rng(seed).normal(size=(6, 4)).astype(np.float32) for seed in range(1, 6)]
RATE = 0.3


def top(scores: np.ndarray, count: int) -> np.ndarray:
    return np.abs(scores) >= np.sort(np.abs(scores).ravel())[-count]


def steps(tx: optax.GradientTransformationExtraArgs, params: Any, gradients: list[Any]) -> list[tuple[Any, Any]]:
    """(params, state) at the start and after each update."""
    state = tx.init(params)
    found, update = [(apply_state_masks(state, params), state)], jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, found[-1][0])
        found.append((optax.apply_updates(found[-1][0], updates), state))
    return found


def with_kernel(gradient: np.ndarray, bias: float = 0.0) -> Any:
    return {"fc1": {"kernel": jnp.asarray(gradient), "bias": jnp.full(4, bias)}}


def test_hydra_equals_numpy() -> None:
    tx = learn_scores(optax.sgd(RATE, momentum=0.9), {"fc1/kernel": Irregular(0.75)})
    found = steps(tx, PARAMS, [with_kernel(gradient, 1.0) for gradient in GRADIENTS])
    scores, momentum = math.sqrt(6 / 6) * W / np.abs(W).max(), np.zeros_like(W)
    changed = False
    for number, (params, state) in enumerate(found):
        mask = top(scores, 6)
        np.testing.assert_array_equal(params["fc1"]["kernel"], np.where(mask, W, 0))
        np.testing.assert_allclose(state.latent["scores"]["fc1"]["kernel"], scores, rtol=1e-5, atol=1e-6)
        changed |= bool((mask != top(W, 6)).any())
        if number < len(GRADIENTS):
            momentum = 0.9 * momentum + np.sign(scores) * W * GRADIENTS[number]
            scores = scores - RATE * momentum
    assert changed, "the scores choose other weights than the magnitude"
    alive = np.asarray(found[-1][0]["fc1"]["kernel"]).any(0)
    np.testing.assert_array_equal(found[-1][0]["fc1"]["bias"], np.where(alive, [1, 2, 3, 4], 0))  # a bias is fixed


def test_a_filter_has_one_score_whose_gradient_is_that_of_all_it_removes() -> None:
    tx = learn_scores(optax.sgd(RATE), {"fc1/kernel": Filter(0.5)})
    (first, before), (_, after) = steps(tx, PARAMS, [with_kernel(GRADIENTS[0], 2.0)])
    norms = np.linalg.norm(W, axis=0)
    scores = norms / norms.max()
    np.testing.assert_allclose(before.latent["scores"]["fc1"]["kernel"], scores[None], rtol=1e-6)
    np.testing.assert_array_equal(first["fc1"]["bias"], np.where(top(norms, 2), [1, 2, 3, 4], 0))
    gradient = (W * GRADIENTS[0]).sum(0) + 2 * np.arange(1, 5)
    np.testing.assert_allclose(
        after.latent["scores"]["fc1"]["kernel"], (scores - RATE * gradient)[None], rtol=1e-5, atol=1e-6
    )


def test_scale_and_shift_are_trained_under_the_masks() -> None:
    layer = PARAMS["fc1"] | {"scale": jnp.array([1.0, 2.0, 3.0, 4.0]), "shift": jnp.ones(4)}
    for specs in ({"fc1/kernel": Filter(0.5)}, {"fc1/scale": BatchNormFilter(0.5)}):
        tx = learn_scores(optax.sgd(0.01), specs)
        (_, _), (params, state) = steps(tx, {"fc1": layer}, [{"fc1": jax.tree.map(jnp.ones_like, layer)}])
        alive = np.asarray(state.masks["fc1"]["bias"])
        assert alive.sum() == 2
        for name, leaf in params["fc1"].items():
            assert (np.asarray(leaf)[..., ~alive] == 0).all() and (np.asarray(leaf)[..., alive] != 0).all(), name
        np.testing.assert_allclose(np.asarray(params["fc1"]["shift"])[alive], 0.99, rtol=1e-6)
        np.testing.assert_array_equal(np.asarray(params["fc1"]["kernel"])[:, alive], W[:, alive])


TWO = {"a": {"kernel": jnp.asarray(W)}, "b": {"kernel": jnp.asarray(GRADIENTS[4][:, :2])}}  # 24 and 12 weights


def rates_of(state: Any) -> dict[str, float]:
    return {name: float(rate) for name, rate in leaves_by_name(state.latent["rates"]).items()}


def test_harp_equals_numpy() -> None:
    learned = LearnedRates(exact_step=10, steps_per_epoch=2, growth=0.5, least=0.1)
    specs = {name: Irregular(0.75, "global") for name in ("a/kernel", "b/kernel")}
    gradients = [{"a": {"kernel": jnp.asarray(g)}, "b": {"kernel": jnp.asarray(g[:, 1:3])}} for g in GRADIENTS[:4]]
    found = steps(learn_scores(optax.sgd(RATE), specs, rates=learned), TWO, gradients)
    target, least = 9, 0.1 * 9 / 36
    inverse = (math.sqrt(0.25) - least) / (1 - least)
    rates = dict.fromkeys(specs, math.log(inverse / (1 - inverse)))
    sizes, gamma = {"a/kernel": 24, "b/kernel": 12}, 0.5
    for number, (params, state) in enumerate(found):
        gates = {name: 1 / (1 + math.exp(-rate)) for name, rate in rates.items()}
        shares = {name: least + (1 - least) * gate for name, gate in gates.items()}
        counts = {name: round(shares[name] * size) for name, size in sizes.items()}
        weights = leaves_by_name(params)
        assert {name: int((weights[name] != 0).sum()) for name in specs} == counts
        assert rates_of(state) == pytest.approx(rates, rel=1e-4)
        assert float(state.fixed["gamma"]) == pytest.approx(gamma)
        if number < len(gradients):
            excess = sum(shares[name] * size for name, size in sizes.items()) / target - 1
            assert excess > 0
            for name, size in sizes.items():
                dense, gradient = leaves_by_name(TWO)[name], leaves_by_name(gradients[number])[name]
                of_share = float((np.asarray(dense) * np.asarray(gradient)).sum()) + gamma * size / target
                rates[name] -= RATE * (1 - least) * gates[name] * (1 - gates[name]) * of_share
            gamma += 0.5 * (number % 2 == 1)


@pytest.mark.parametrize("kind,kept", [(Irregular, 9), (Filter, 12), (Column, 8)])
def test_harp_keeps_exactly_the_target_from_the_asked_step_on(kind: type, kept: int) -> None:
    specs = {name: kind(0.75, "global") for name in ("a/kernel", "b/kernel")}
    tx = learn_scores(optax.sgd(RATE), specs, rates=LearnedRates(exact_step=3, steps_per_epoch=1))
    gradient = jax.tree.map(jnp.zeros_like, TWO)
    found = [sum(int((leaf != 0).sum()) for leaf in jax.tree.leaves(p)) for p, _ in steps(tx, TWO, [gradient] * 4)]
    # 9 of 36 weights; whole structures have 6 weights, or 4 and 2, and one of each layer stays.
    assert found[2] > kept and found[3] == found[4] == kept


def test_shares_under_the_target_are_those_learned_times_one_factor() -> None:
    specs = {name: Irregular(0.75, "global") for name in ("a/kernel", "b/kernel")}
    learned = LearnedRates(exact_step=1, steps_per_epoch=1)
    tx = learn_scores(optax.sgd(0.0), specs, rates=learned)
    state = tx.init(TWO)
    least = 0.1 * 0.25
    rate = lambda share: jnp.float32(math.log((share - least) / (1 - share)))
    state.latent["rates"] = {"a": {"kernel": rate(0.2)}, "b": {"kernel": rate(0.8)}}
    _, after = tx.update(jax.tree.map(jnp.zeros_like, TWO), state, TWO)
    # 4.8 and 9.6 weights would be kept, 14.4 in all; of 9 these are 3 and 6.
    assert [int(mask.sum()) for mask in jax.tree.leaves(after.masks)] == [3, 6]


def test_gamma_stops_growing_when_the_target_is_reached() -> None:
    specs = {name: Irregular(0.75, "global") for name in ("a/kernel", "b/kernel")}
    learned = LearnedRates(exact_step=50, steps_per_epoch=1, growth=0.5)
    found = steps(learn_scores(optax.sgd(1.0), specs, rates=learned), TWO, [jax.tree.map(jnp.zeros_like, TWO)] * 12)
    gammas = [float(state.fixed["gamma"]) for _, state in found]
    reached = [bool(state.fixed["reached"]) for _, state in found]
    first = reached.index(True)
    assert 1 < first < 12 and len(set(gammas[first:])) == 1
    assert gammas[:first] == pytest.approx([0.5 * (1 + number) for number in range(first)])


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="exact_step is 0 and steps_per_epoch 4; expected 1 or more"):
        LearnedRates(0, 4)
    with pytest.raises(ValueError, match="growth is 0; expected a number above 0"):
        LearnedRates(3, 1, growth=0)
    with pytest.raises(ValueError, match="least is 1; expected a share"):
        LearnedRates(3, 1, least=1)
    with pytest.raises(ValueError, match="a/kernel are stacks of layers; expected stack_axes=0"):
        learn_scores(optax.sgd(1.0), {"a/kernel": Irregular(0.5, stack_axes=1)}, rates=LearnedRates(3, 1))
    tx = learn_scores(optax.sgd(1.0), {"fc1/kernel": Irregular(0.5)})
    with pytest.raises(ValueError, match="need the params"):
        tx.update(PARAMS, tx.init(PARAMS))
