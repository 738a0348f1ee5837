"""Layer-name patterns to sparsity sets."""

from collections.abc import Callable

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from normed import NORMED, NORMED_LAYERS

from rap_jax.pruning.layers import kernels
from rap_jax.pruning.projections import BatchNormFilter, Column, Filter, Irregular
from rap_jax.pruning.specs import masks_of, only_selected, project_tree, selected, specs_from_patterns

pytestmark = pytest.mark.usefixtures("optimised")

PARAMS = {
    "conv1": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.ones(4)},
    "conv2": {"kernel": jnp.ones((3, 3, 4, 4)), "bias": jnp.ones(4)},
    "fc1": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)},
    "fc2": {"kernel": jnp.ones((4, 10)), "bias": jnp.ones(10)},
}


def specs(sparsity: tuple, structure: str = "filter") -> dict:
    return specs_from_patterns(sparsity, PARAMS, structure=structure, output_layer="fc2")


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
        for function in (lambda specs: selected(specs, PARAMS), lambda specs: project_tree(specs, PARAMS)):
            with pytest.raises(ValueError, match=f"{key}, but the weights are conv1/bias, conv1/kernel"):
                function({key: Filter(0.5)})


def test_weights_need_not_be_called_kernel() -> None:
    params = {"w1": jnp.ones((3, 4)), "b1": jnp.ones(4)}
    projected = project_tree({"w1": Filter(0.5)}, params)
    np.testing.assert_array_equal(projected["w1"].sum(0), [3, 3, 0, 0])
    np.testing.assert_array_equal(projected["b1"], [1, 1, 0, 0])


def test_trees() -> None:
    chosen = {"fc1/kernel": Filter(0.5)}
    assert [name for name, _ in kernels(PARAMS)] == [f"{layer}/kernel" for layer in PARAMS]
    assert selected(chosen, PARAMS)["fc1"] == {"kernel": True, "bias": True}
    assert selected(chosen, PARAMS)["fc2"] == {"kernel": False, "bias": False}
    assert selected({"fc1/kernel": Irregular(0.5)}, PARAMS)["fc1"] == {"kernel": True, "bias": False}
    assert isinstance(only_selected(chosen, PARAMS)["fc2"]["kernel"], optax.MaskedNode)


@pytest.mark.parametrize("show", [lambda specs, params: params, only_selected], ids=["whole", "selected"])
def test_projecting_a_tree(show: Callable) -> None:
    chosen = {"fc1/kernel": Filter(0.5), "conv1/kernel": Irregular(0.5)}
    projected = project_tree(chosen, show(chosen, PARAMS))
    np.testing.assert_array_equal(projected["fc1"]["kernel"].sum(0), [6, 6, 0, 0])
    np.testing.assert_array_equal(projected["fc1"]["bias"], [1, 1, 0, 0])
    assert projected["conv1"]["kernel"].sum() == 18
    chex.assert_trees_all_equal(projected["conv2"], show(chosen, PARAMS)["conv2"])


def normed_specs(sparsity: tuple, structure: str, output_layer: str = "fc", **more: str) -> dict:
    return specs_from_patterns(sparsity, NORMED, structure=structure, output_layer=output_layer, **more)


def test_patterns_match_whole_paths() -> None:
    found = normed_specs((("*/conv1", 0.25), ("conv1", 0.0), ("*", 0.5)), "filter")
    assert found == {"group1_block0/conv1/kernel": Filter(0.25), "group1_block0/shortcut/kernel": Filter(0.5)}
    assert set(normed_specs((("*", 0.5),), "filter")) == {f"{layer}/kernel" for layer in NORMED_LAYERS}


def test_bn_filter_is_keyed_by_the_scale() -> None:
    everywhere = {f"{layer}/scale": BatchNormFilter(0.5) for layer in NORMED_LAYERS}
    assert normed_specs((("*", 0.5),), "bn_filter") == everywhere
    assert normed_specs((("fc", 0.0), ("conv1", 0.0), ("*", 0.5)), "bn_filter").keys() == set(everywhere) - {
        "conv1/scale"
    }
    assert normed_specs((("*/short*", 0.25),), "bn_filter") == {"group1_block0/shortcut/scale": BatchNormFilter(0.25)}


def test_bn_filter_spares_the_classes() -> None:
    assert set(normed_specs((("*", 0.5),), "bn_filter", output_layer="conv1")) == {
        f"{layer}/scale" for layer in NORMED_LAYERS[1:]
    }
    with pytest.raises(ValueError, match="'conv\\*'.*output layer 'conv1'"):
        normed_specs((("conv*", 0.5),), "bn_filter", output_layer="conv1")
    with pytest.raises(ValueError, match="'f\\*' matches the output layer 'fc'"):
        normed_specs((("f*", 0.5),), "bn_filter")


def test_bn_filter_refuses_layers_without_batch_norm() -> None:
    with pytest.raises(ValueError, match="'f\\*' matches fc without BatchNorm"):
        normed_specs((("f*", 0.5),), "bn_filter", output_layer="conv1")
    for pattern in ("*", "conv1"):
        with pytest.raises(ValueError, match="the network has no BatchNorm: none of conv1, conv2, fc1, fc2"):
            specs(((pattern, 0.5),), "bn_filter")
    assert specs((), "bn_filter") == {} == specs((("*", 0.0),), "bn_filter")


def test_the_budget_reaches_the_specs() -> None:
    found = normed_specs((("conv1", 0.0), ("*", 0.5)), "column", budget="global")
    assert found == {f"{name}/kernel": Column(0.5, "global") for name in [*NORMED_LAYERS[1:], "fc"]}


def test_all_that_belongs_to_a_filter_is_constrained_with_it() -> None:
    chosen = selected({"conv1/kernel": Filter(0.5), "group1_block0/conv1/scale": BatchNormFilter(0.5)}, NORMED)
    everything = dict.fromkeys(["kernel", "bias", "scale", "shift"], True)
    assert chosen["conv1"] == everything
    assert chosen["group1_block0"]["conv1"] == everything | {"kernel": False}
    assert chosen["group1_block0"]["shortcut"] == dict.fromkeys(everything, False)
    for kind in (Irregular, Column):
        assert selected({"conv1/kernel": kind(0.5)}, NORMED)["conv1"] == dict.fromkeys(everything, False) | {
            "kernel": True
        }


@pytest.mark.parametrize("other", [Filter(0.25, "global"), Column(0.5, "global")])
def test_refuses_global_budgets_that_differ(other: Filter) -> None:
    for function in (masks_of, project_tree, lambda specs, params: selected(specs, params)):
        with pytest.raises(ValueError, match="global"):
            function({"conv1/kernel": Filter(0.5, "global"), "fc/kernel": other}, NORMED)


def test_refuses_two_specs_for_a_layer() -> None:
    with pytest.raises(ValueError, match="conv1/scale and the kernel beside"):
        masks_of({"conv1/scale": BatchNormFilter(0.5), "conv1/kernel": Irregular(0.5)}, NORMED)
