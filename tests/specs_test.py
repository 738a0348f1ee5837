"""Layer-name patterns to sparsity sets."""

from collections.abc import Callable

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rap_jax.config import PruneConfig
from rap_jax.projections import Column, Filter, Irregular
from rap_jax.specs import kernels, only_selected, project_tree, selected, specs_from_config

PARAMS = {
    "conv1": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.ones(4)},
    "conv2": {"kernel": jnp.ones((3, 3, 4, 4)), "bias": jnp.ones(4)},
    "fc1": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)},
    "fc2": {"kernel": jnp.ones((4, 10)), "bias": jnp.ones(10)},
}


def specs(sparsity: tuple, structure: str = "filter") -> dict:
    config = PruneConfig(structure=structure, sparsity=sparsity)
    return specs_from_config(PARAMS, config, output_layer="fc2")


def test_the_first_pattern_that_matches_decides() -> None:
    found = specs((("conv2", 0.25), ("conv*", 0.5), ("fc1", 0.75)))
    assert found == {"conv1/kernel": Filter(0.5), "conv2/kernel": Filter(0.25), "fc1/kernel": Filter(0.75)}


@pytest.mark.parametrize("structure,kind", [("irregular", Irregular), ("column", Column)])
def test_one_ratio_for_all_layers(structure: str, kind: type) -> None:
    assert specs((("*", 0.5),), structure) == {f"{layer}/kernel": kind(0.5) for layer in PARAMS}


def test_one_ratio_spares_the_classes_under_filter() -> None:
    assert set(specs((("*", 0.5),))) == {"conv1/kernel", "conv2/kernel", "fc1/kernel"}


def test_a_ratio_of_zero_leaves_the_layer_alone() -> None:
    assert set(specs((("conv1", 0.0), ("conv*", 0.5)))) == {"conv2/kernel"}


@pytest.mark.parametrize("pattern,expected", [("conv9", "conv9.*conv1, conv2, fc1, fc2"), ("fc*", "fc2.*classes")])
def test_refuses(pattern: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        specs(((pattern, 0.5),))


def test_a_key_that_is_no_weight_is_refused() -> None:
    for key in ("fc_1/kernel", "fc1/weight", "fc1"):
        for function in (lambda specs: selected(PARAMS, specs), lambda specs: project_tree(specs, PARAMS)):
            with pytest.raises(ValueError, match=f"{key}, but the weights are conv1/bias, conv1/kernel"):
                function({key: Filter(0.5)})


def test_weights_need_not_be_called_kernel() -> None:
    params = {"w1": jnp.ones((3, 4)), "b1": jnp.ones(4)}
    projected = project_tree({"w1": Filter(0.5)}, params)
    np.testing.assert_array_equal(projected["w1"].sum(0), [3, 3, 0, 0])
    np.testing.assert_array_equal(projected["b1"], 1)


def test_trees() -> None:
    chosen = {"fc1/kernel": Filter(0.5)}
    assert [name for name, _ in kernels(PARAMS)] == [f"{layer}/kernel" for layer in PARAMS]
    assert selected(PARAMS, chosen)["fc1"] == {"kernel": True, "bias": True}
    assert selected(PARAMS, chosen)["fc2"] == {"kernel": False, "bias": False}
    assert selected(PARAMS, {"fc1/kernel": Irregular(0.5)})["fc1"] == {"kernel": True, "bias": False}
    assert isinstance(only_selected(PARAMS, chosen)["fc2"]["kernel"], optax.MaskedNode)


@pytest.mark.parametrize("show", [lambda params, specs: params, only_selected], ids=["whole", "selected"])
def test_projecting_a_tree(show: Callable) -> None:
    chosen = {"fc1/kernel": Filter(0.5), "conv1/kernel": Irregular(0.5)}
    projected = project_tree(chosen, show(PARAMS, chosen))
    np.testing.assert_array_equal(projected["fc1"]["kernel"].sum(0), [6, 6, 0, 0])
    np.testing.assert_array_equal(projected["fc1"]["bias"], [1, 1, 0, 0])
    assert projected["conv1"]["kernel"].sum() == 18
    chex.assert_trees_all_equal(projected["conv2"], show(PARAMS, chosen)["conv2"])
