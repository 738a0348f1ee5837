"""Merged duplicates: the same function, exact counts, and the freed places go to the next filters."""

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_networks import random_weights
from tiers import large_later

from rap_jax.compaction import Wiring, compact, fold_batch_norm, merge_duplicates
from rap_jax.compaction.cut import cut
from rap_jax.config import ModelConfig, StageConfig
from rap_jax.models import Model, create_model
from rap_jax.models.model import Weights
from rap_jax.pruning.layers import leaves_by_name
from rap_jax.pruning.projections import Filter
from rap_jax.pruning.specs import Specs
from rap_jax.runs.network import load_network

SHAPES = {"lenet_mnist": (8, 12, 1), "lenet_cifar": (16, 20, 3)}
LAYERS = {"lenet_mnist": ("conv1", "conv2", "fc1"), "lenet_cifar": ("conv1", "conv2", "fc1", "fc2")}


@functools.cache
def network(name: str) -> Model:
    shape: Any = SHAPES.get(name, (32, 32, 3))
    # That implementation is quick to compile.
    return create_model(ModelConfig(name, 2), input_shape=shape, num_classes=10, implementation="xla")


@functools.cache
def shapes_of(name: str) -> Any:
    return jax.eval_shape(network(name).init, jax.random.key(0))


def params_of(name: str, seed: int = 0) -> Any:
    return random_weights(shapes_of(name).params, seed)


def plant(layer: Any, one: int, factors: dict[int, float]) -> None:
    """Makes other filters multiples of one, in place: in every leaf, as far as float32 can hold it."""
    for leaf in layer.values():
        for other, factor in factors.items():
            leaf[..., other] = np.float32(factor) * leaf[..., one]


@functools.cache
def compiled(model: Model) -> Any:
    return jax.jit(model.logits)


def logits(model: Model, params: Any, batch_stats: Any = None) -> np.ndarray:
    images = jax.random.uniform(jax.random.key(2), (5, *model.input_shape))
    return np.asarray(compiled(model)(Weights(params, batch_stats or {}), images))


def zero_filters(layer: Any) -> list[int]:
    """Filters of which every number is zero; none may be zero in part."""
    rows = np.concatenate([np.asarray(leaf).reshape(-1, leaf.shape[-1]) for leaf in layer.values()])
    return np.flatnonzero((rows == 0).all(0)).tolist()


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name in LAYERS for layer in LAYERS[name]])
def test_the_function_stays(name: str, layer: str) -> None:
    """Convolutions and dense layers, read by convolutions and dense layers."""
    model, params = network(name), params_of(name)
    plant(params[layer], 1, {0: 0.3, 3: 0.5})
    before = copy.deepcopy(params)
    merged = merge_duplicates(model.wiring, params)
    chex.assert_trees_all_equal(params, before)  # a pure function
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, params)
    assert {one: zero_filters(merged[one]) for one in LAYERS[name]} == {one: [] for one in LAYERS[name]} | {
        layer: [0, 3]
    }
    np.testing.assert_allclose(logits(model, merged), logits(model, params), rtol=1e-5, atol=1e-5)
    for leaf, found in merged[layer].items():  # the one that stays, and all others, keep every bit
        kept = [1, 2, *range(4, found.shape[-1])]
        np.testing.assert_array_equal(found[..., kept], params[layer][leaf][..., kept])


def test_readers_against_numpy_by_hand() -> None:
    """The strongest stays; rows of a dense reader are [height, width, channel]."""
    params = params_of("lenet_mnist")
    plant(params["conv1"], 2, {1: 4.0})
    plant(params["conv2"], 5, {6: 0.25})
    merged = merge_duplicates(network("lenet_mnist").wiring, params)
    expected = copy.deepcopy(params)
    conv2, fc1 = expected["conv2"]["kernel"], expected["fc1"]["kernel"].reshape(2, 3, 8, 128)
    conv2[:, :, 1] += conv2[:, :, 2] / 4  # the multiple of conv1 is stronger here
    conv2[:, :, 2] = expected["conv1"]["kernel"][..., 2] = expected["conv1"]["bias"][2] = 0
    fc1[:, :, 5] += fc1[:, :, 6] / 4
    fc1[:, :, 6] = conv2[..., 6] = expected["conv2"]["bias"][6] = 0
    chex.assert_trees_all_close(merged, expected, rtol=1e-5, atol=1e-6)
    assert zero_filters(merged["conv1"]) == [2] and zero_filters(merged["conv2"]) == [6]


def test_filters_that_differ_only_in_what_they_read_from_duplicates() -> None:
    params = params_of("lenet_mnist")
    plant(params["conv1"], 0, {1: 0.5})
    plant(params["conv2"], 0, {4: 0.75})
    kernel = params["conv2"]["kernel"]
    kernel[:, :, 0, 4] += 0.5
    kernel[:, :, 1, 4] -= 1.0  # 0.5 times a_0 on the one hand, 1 times 0.5 a_0 on the other
    model = network("lenet_mnist")
    merged = merge_duplicates(model.wiring, params)
    assert zero_filters(merged["conv1"]) == [1] and zero_filters(merged["conv2"]) == [4]
    np.testing.assert_allclose(logits(model, merged), logits(model, params), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_without_duplicates_nothing_changes(name: str) -> None:
    params = params_of(name)
    chex.assert_trees_all_equal(merge_duplicates(network(name).wiring, params), params)


@pytest.mark.parametrize("case", ["negative", "other bias", "all zero"])
def test_what_is_no_duplicate_stays(case: str) -> None:
    params = params_of("lenet_mnist")
    plant(params["conv1"], 0, {1: -0.5 if case == "negative" else 0.0 if case == "all zero" else 0.5})
    if case == "other bias":
        params["conv1"]["bias"][1] += 0.1
    chex.assert_trees_all_equal(merge_duplicates(network("lenet_mnist").wiring, params), params)


@pytest.mark.parametrize("is_merged", [True, False])
@pytest.mark.parametrize("tolerance", [1e-5, 1e-4, 1e-3, 0.5])
def test_the_tolerance_is_one_minus_the_cosine(tolerance: float, is_merged: bool) -> None:
    angle = np.arccos(1 - tolerance) * (0.99 if is_merged else 1.01)
    params = params_of("lenet_mnist")
    fc1 = {name: np.zeros_like(leaf) for name, leaf in params["fc1"].items()}
    fc1["kernel"][:2, :2] = [[1, 3 * np.cos(angle)], [0, 3 * np.sin(angle)]]
    merged = merge_duplicates(network("lenet_mnist").wiring, params | {"fc1": fc1}, tolerance=tolerance)
    assert (0 in zero_filters(merged["fc1"])) == is_merged


def test_the_default_tolerance() -> None:
    params = params_of("lenet_mnist")
    for scale, expected in ((1e-2, [1]), (3e-2, [])):
        plant(params["conv2"], 0, {1: 0.5})
        kernel = params["conv2"]["kernel"]
        away = np.random.default_rng(0).normal(size=kernel[..., 1].shape)
        kernel[..., 1] += scale * np.linalg.norm(kernel[..., 1]) * away / np.linalg.norm(away)
        assert zero_filters(merge_duplicates(network("lenet_mnist").wiring, params)["conv2"]) == expected


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    planted=st.dictionaries(
        st.sampled_from(LAYERS["lenet_mnist"]),
        st.dictionaries(st.integers(1, 3), st.floats(0.125, 8, width=32) | st.floats(-8, -0.125, width=32), max_size=3),
    ),
)
def test_any_duplicates(seed: int, planted: dict[str, dict[int, float]]) -> None:
    """Those of positive factors are one filter, those of negative factors another, and the strongest of each stays."""
    model, params = network("lenet_mnist"), params_of("lenet_mnist", seed)
    for layer, factors in planted.items():
        plant(params[layer], 0, factors)
    merged = merge_duplicates(model.wiring, params)
    for layer in LAYERS["lenet_mnist"]:
        all_factors = {0: 1.0} | planted.get(layer, {})
        gone = set[int]()
        for sign in (1, -1):
            group = {one: abs(factor) for one, factor in all_factors.items() if factor * sign > 0}
            strongest = max(group.values(), default=0)
            gone |= {one for one in group if group[one] != strongest}
            gone |= set(sorted(one for one in group if group[one] == strongest)[1:])
        assert set(zero_filters(merged[layer])) == gone, layer
    before, after = logits(model, params), logits(model, merged)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    chex.assert_trees_all_equal(merge_duplicates(model.wiring, merged), merged)  # nothing is left to merge


def strongest(kernel: np.ndarray, count: int) -> list[int]:
    """The filters that are kept, by NumPy."""
    sums = np.square(kernel.astype(np.float64)).reshape(-1, kernel.shape[-1]).sum(0)
    return sorted(np.argsort(-sums, kind="stable")[:count].tolist())


def kept_filters(layer: Any) -> list[int]:
    return sorted(set(range(layer["bias"].shape[-1])) - set(zero_filters(layer)))


def test_freed_places_go_to_the_next_filters_and_counts_stay_exact() -> None:
    model, params = network("lenet_mnist"), params_of("lenet_mnist")
    conv1, conv2 = params["conv1"], params["conv2"]
    for leaf in (*conv1.values(), *conv2.values()):  # clear ranks, the strongest first
        leaf *= np.float32(0.8) ** np.arange(leaf.shape[-1], dtype=np.float32)
    plant(conv1, 0, {1: 0.9})
    plant(conv2, 0, {2: 0.9, 3: 0.8})
    specs = {f"{layer}/kernel": Filter(0.5) for layer in LAYERS["lenet_mnist"]}
    merged = Weights(merge_duplicates(model.wiring, params), {})
    plain, freed = (cut(specs, model, weights).params for weights in (Weights(params, {}), merged))
    for layer, duplicates in (("conv1", [1]), ("conv2", [2, 3]), ("fc1", [])):
        width = params[layer]["bias"].shape[-1]
        before = strongest(params[layer]["kernel"], width // 2)
        assert kept_filters(plain[layer]) == before and set(duplicates) <= set(before)
        unique = np.array(merged.params[layer]["kernel"])
        unique[..., duplicates] = 0
        assert kept_filters(freed[layer]) == strongest(unique, width // 2)
        assert not set(duplicates) & set(kept_filters(freed[layer]))
    small = compact(model, freed, {})
    assert small.model.features == {"conv1": 2, "conv2": 4, "fc1": 64}
    np.testing.assert_allclose(logits(small.model, small.params), logits(model, freed), rtol=1e-4, atol=1e-5)


def test_more_duplicates_than_are_to_be_cut() -> None:
    """They go as well: compaction takes them out."""
    model, params = network("lenet_mnist"), params_of("lenet_mnist")
    plant(params["conv1"], 0, {1: 0.9, 2: 0.8, 3: 0.7})
    merged = merge_duplicates(model.wiring, params)
    found = cut({"conv1/kernel": Filter(0.5)}, model, Weights(merged, {})).params
    small = compact(model, found, {})
    assert small.model.features == {"conv1": 1}
    np.testing.assert_allclose(logits(small.model, small.params), logits(model, params), rtol=1e-4, atol=1e-5)


def test_only_the_layers_that_are_asked_for() -> None:
    params = params_of("lenet_mnist")
    plant(params["conv1"], 0, {1: 0.5})
    plant(params["conv2"], 0, {1: 0.5})
    merged = merge_duplicates(network("lenet_mnist").wiring, params, ["conv2"])
    assert zero_filters(merged["conv1"]) == [] and zero_filters(merged["conv2"]) == [1]


def test_zeros_of_readers_stay_zero() -> None:
    """A weight that was pruned would come back: only the one pair whose zeros it leaves is merged."""
    params = params_of("lenet_mnist")
    plant(params["conv1"], 0, {1: 0.9, 2: 0.8, 3: 0.7})
    kernel = params["conv2"]["kernel"]
    kernel[0, 0, 0, 0] = kernel[0, 0, 2, 0] = 0
    kernel[..., 5] = 0  # a removed filter of the reader is in nobody's way
    merged = merge_duplicates(network("lenet_mnist").wiring, params)
    assert zero_filters(merged["conv1"]) == [2, 3]  # 1 takes over 3
    assert (merged["conv2"]["kernel"][kernel == 0] == 0).all()
    model = network("lenet_mnist")
    np.testing.assert_allclose(logits(model, merged), logits(model, params), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", large_later(["resnet18", "wide_resnet28", "vgg16"]))
def test_layers_with_batch_norm_and_layers_of_sums_stay(name: str) -> None:
    params = params_of(name)
    for path, leaf in leaves_by_name(params).items():
        if not path.startswith(network(name).output_layer):
            leaf[..., 1] = leaf[..., 0]
    chex.assert_trees_all_equal(merge_duplicates(network(name).wiring, params), params)


@pytest.mark.parametrize("name", large_later(["resnet18", "vgg16"]))
def test_folded_networks_can_be_merged_but_for_sums(name: str) -> None:
    """Means and pooling over the image are between a layer and its reader."""
    params, batch_stats = params_of(name), random_weights(shapes_of(name).batch_stats, 1)
    folded = fold_batch_norm(network(name), params, batch_stats)
    alone = [layer for layer, group in folded.model.wiring.groups.items() if layer == group]
    groups = list(folded.model.wiring.groups.values())
    for layer in alone:
        plant(functools.reduce(lambda tree, key: tree[key], layer.split("/"), folded.params), 0, {1: 0.5})
    merged = merge_duplicates(folded.model.wiring, folded.params)
    for layer in alone:
        found = functools.reduce(lambda tree, key: tree[key], layer.split("/"), merged)
        assert zero_filters(found) == ([1] if groups.count(layer) == 1 else []), layer
    expected = logits(folded.model, folded.params)
    np.testing.assert_allclose(logits(folded.model, merged), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_a_tolerance_that_cannot_be_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match=rf"tolerance is {tolerance}; expected a number in \[0, 1\)"):
        merge_duplicates(network("lenet_mnist").wiring, params_of("lenet_mnist"), tolerance=tolerance)


def test_what_does_not_fit_is_refused() -> None:
    params = params_of("lenet_mnist")
    with pytest.raises(ValueError, match="reads names conv9"):
        merge_duplicates(Wiring((("conv9", "conv1"),)), params)
    params["conv2"]["kernel"][0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="conv2/kernel has numbers that are NaN"):
        merge_duplicates(network("lenet_mnist").wiring, params)


@pytest.mark.e2e
def test_a_run_merges_before_admm_and_before_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerance is wide here, so that a few steps of training make duplicates."""
    wide = functools.partial(merge_duplicates, tolerance=0.9)
    monkeypatch.setattr("rap_jax.training.pipeline.merge_duplicates", wide)
    config = tiny.tiny_config()
    config = dataclasses.replace(config, prune=dataclasses.replace(config.prune, merge_duplicates=True))
    found = tiny.run_and_watch(tmp_path / "run", config)
    wiring = create_model(config.model, input_shape=(8, 8, 1), num_classes=10).wiring
    for before, stage in (("pretrain", "admm"), ("admm", "retrain")):
        trained = found.outcomes[before].weights.params
        merged = wide(wiring, trained, {"conv1", "conv2", "fc1"})
        assert any(zero_filters(merged[layer]) != zero_filters(trained[layer]) for layer in LAYERS["lenet_mnist"])
        if stage == "admm":
            chex.assert_trees_all_equal(found.starts[stage].params, merged)
            gone = {layer: zero_filters(merged[layer]) for layer in LAYERS["lenet_mnist"]}
            after = found.outcomes["admm"].weights.params  # nothing brings them back
            assert all(set(gone[layer]) <= set(zero_filters(after[layer])) for layer in gone)
        else:
            for layer in LAYERS["lenet_mnist"]:
                width = merged[layer]["bias"].shape[-1]
                kept = strongest(merged[layer]["kernel"], width // (4 if layer == "fc1" else 2))
                alive = sorted(set(kept) - set(zero_filters(merged[layer])))
                assert kept_filters(found.starts[stage].params[layer]) == alive
    assert "cut" in found.results["stages"]["admm"]


@pytest.mark.e2e
@pytest.mark.parametrize("merges", [True, False])
def test_a_run_without_a_retrain_merges_before_its_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merges: bool
) -> None:
    """Both in the record of the stage and in the end; without the flag nothing is merged."""
    wide = functools.partial(merge_duplicates, tolerance=0.9)
    before_cuts = []

    def cut_and_note(specs: Specs, model: Model, weights: Weights, key: jax.Array | None) -> Weights:
        before_cuts.append(weights.params)
        return cut(specs, model, weights, key)

    monkeypatch.setattr("rap_jax.training.pipeline.merge_duplicates", wide)
    monkeypatch.setattr("rap_jax.training.pipeline.cut", cut_and_note)
    config = tiny.tiny_config()
    changes = {"admm": StageConfig(0), "retrain": StageConfig(0), "pretrain": StageConfig(1, config.pretrain.optimizer)}
    prune = dataclasses.replace(config.prune, merge_duplicates=merges, sparsity=(("conv*", 0.5),))
    found = tiny.run_and_watch(tmp_path / "run", dataclasses.replace(config, prune=prune, **changes))
    model = create_model(config.model, input_shape=(8, 8, 1), num_classes=10)
    trained = found.outcomes["pretrain"].weights.params
    merged = wide(model.wiring, trained, {"conv1", "conv2"})  # fc1 is not pruned
    assert any(zero_filters(merged[layer]) != zero_filters(trained[layer]) for layer in ("conv1", "conv2"))
    expected = merged if merges else trained
    assert len(before_cuts) == 2
    for params in before_cuts:
        chex.assert_trees_all_equal(params, expected)
    specs = {f"{layer}/kernel": Filter(0.5) for layer in ("conv1", "conv2")}
    after = cut(specs, model, Weights(expected, {})).params
    chex.assert_trees_all_equal(load_network(tmp_path / "run").weights.params, after)
