"""TwinRep against its rule in NumPy, on arrays of a few numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rap_jax.pruning.factors import factorise
from rap_jax.pruning.projections import Filter, Irregular

W = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
PARAMS = {"fc1": {"kernel": jnp.asarray(W), "bias": jnp.ones(4)}}
GRADIENTS = [np.random.default_rng(seed).normal(size=(6, 4)).astype(np.float32) for seed in range(1, 6)]
RATE, DECAY, CUT = 0.15, 0.1, 3
SGD = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE))


def kernels_after(tx: optax.GradientTransformationExtraArgs) -> list[np.ndarray]:
    params, state, found = PARAMS, tx.init(PARAMS), []
    update = jax.jit(tx.update)
    for gradient in GRADIENTS:
        updates, state = update({"fc1": {"kernel": jnp.asarray(gradient), "bias": jnp.zeros(4)}}, state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.asarray(params["fc1"]["kernel"]))
        alive = found[-1].any(0)
        np.testing.assert_array_equal(np.asarray(params["fc1"]["bias"]) != 0, alive)
    return found


def test_single_weights_equal_numpy() -> None:
    found = kernels_after(factorise(SGD, {"fc1/kernel": Irregular(0.75)}, prune_step=CUT))
    first, second, mask = np.sign(W) * np.sqrt(np.abs(W)), np.sqrt(np.abs(W)), np.ones_like(W)
    for number, gradient in enumerate(GRADIENTS):
        masked = gradient * mask
        first, second = (
            first - RATE * (masked * second + DECAY * first),
            second - RATE * (masked * first + DECAY * second),
        )
        product = first * second
        if number + 1 == CUT:
            mask = (np.abs(product) >= np.sort(np.abs(product).ravel())[-6]).astype(np.float32)
            assert (mask != (np.abs(W) >= np.sort(np.abs(W).ravel())[-6])).any()
        np.testing.assert_allclose(found[number], product * mask, rtol=1e-4, atol=1e-6)
        assert np.count_nonzero(found[number]) == (24 if number + 1 < CUT else 6)


def test_filters_equal_numpy() -> None:
    found = kernels_after(factorise(SGD, {"fc1/kernel": Filter(0.5)}, prune_step=CUT))
    weights, mixing, mask = W, np.eye(4), np.ones(4)
    for number, gradient in enumerate(GRADIENTS):
        masked = gradient * mask
        weights, mixing = (
            weights - RATE * (masked @ mixing.T + DECAY * weights),
            mixing - RATE * (weights.T @ masked + DECAY * mixing),
        )
        product = weights @ mixing
        if number + 1 == CUT:
            norms = np.linalg.norm(product, axis=0)
            mask = (norms >= np.sort(norms)[-2]).astype(np.float32)
        np.testing.assert_allclose(found[number], product * mask, rtol=1e-4, atol=1e-5)
        assert np.count_nonzero(found[number].any(0)) == (4 if number + 1 < CUT else 2)


@pytest.mark.parametrize("kind", [Irregular, Filter])
def test_the_factors_of_each_layer_of_a_stack_are_its_own(kind: type) -> None:
    stack = {"fc": {"kernel": jnp.asarray(np.stack([W, GRADIENTS[0]])), "bias": jnp.ones((2, 4))}}
    slope = {"fc": {"kernel": jnp.asarray(np.stack([GRADIENTS[1], GRADIENTS[2]])), "bias": jnp.zeros((2, 4))}}
    tx = factorise(optax.sgd(RATE), {"fc/kernel": kind(0.5, stack_axes=1)}, prune_step=1)
    updates, _ = tx.update(slope, tx.init(stack), stack)
    both = optax.apply_updates(stack, updates)["fc"]["kernel"]
    for layer in range(2):
        one, of_one = (jax.tree.map(lambda leaf, layer=layer: leaf[layer], tree) for tree in (stack, slope))
        tx = factorise(optax.sgd(RATE), {"fc/kernel": kind(0.5)}, prune_step=1)
        updates, _ = tx.update(of_one, tx.init(one), one)
        np.testing.assert_allclose(both[layer], optax.apply_updates(one, updates)["fc"]["kernel"], rtol=1e-6)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="prune_step is 0; expected 1 or more"):
        factorise(optax.sgd(0.1), {}, prune_step=0)
    with pytest.raises(ValueError, match="Specs name fc9/kernel"):
        factorise(optax.sgd(0.1), {"fc9/kernel": Irregular(0.5)}, prune_step=1).init(PARAMS)
