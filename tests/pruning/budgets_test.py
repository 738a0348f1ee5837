"""Layer budgets: shares by their definitions, totals to within one structure, and nothing that depends on an order."""

import itertools
import math
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rap_jax.pruning.budgets import Rule, count_weights, layer_budgets
from rap_jax.pruning.projections import BatchNormFilter, Column, Filter, Irregular, Spec, num_kept
from rap_jax.pruning.specs import masks_of

RULES = get_args(Rule)
KINDS = (Irregular, Filter, Column)


def layers(*kernels: Any) -> dict[str, Any]:
    return {f"fc{place}": {"kernel": np.asarray(kernel, np.float32)} for place, kernel in enumerate(kernels)}


def random_layers(seed: int, shapes: Any = ((3, 3, 2, 4), (12, 5), (5, 10))) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return layers(*(generator.normal(size=shape) * generator.exponential() for shape in shapes))


def specs_of(params: Any, kind: type = Irregular, sparsity: float = 0.5) -> dict[str, Spec]:
    return {f"{layer}/kernel": kind(sparsity) for layer in params}


def num_structures(kind: type, kernel: np.ndarray) -> int:
    return {Irregular: kernel.size, Filter: kernel.shape[-1], Column: kernel.size // kernel.shape[-1]}[kind]


def kept_by(found: dict[str, Spec], params: Any, kind: type = Irregular) -> list[int]:
    """Structures kept in each layer; a layer without a spec keeps all."""
    sizes = {f"{layer}/kernel": num_structures(kind, leaves["kernel"]) for layer, leaves in params.items()}
    return [num_kept(found[name], size) if name in found else size for name, size in sizes.items()]


def lamp_score(kernel: np.ndarray, weight: float) -> float:
    """By the definition; as a fraction of whole numbers it is exact."""
    rest = sum(float(other) ** 2 for other in kernel.ravel() if abs(other) >= abs(weight))
    return float(weight) ** 2 / rest if rest else 0.0


# Few whole numbers: many ties, within layers and between them.
WHOLE = st.lists(st.integers(-3, 3), min_size=4, max_size=4)


@given(st.lists(WHOLE, min_size=1, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_lamp_is_one_threshold_for_its_score_by_brute_force(numbers: list[list[int]], data: Any) -> None:
    kernels = [np.array(each, np.float32).reshape(2, 2) for each in numbers]
    total = data.draw(st.integers(len(kernels), 4 * len(kernels)))
    params = layers(*kernels)
    found = kept_by(layer_budgets(specs_of(params), params, rule="lamp", total=total), params)
    # The best of each layer first, then by score; a sort keeps the order of the tree among equals.
    scores = [(layer, sorted((lamp_score(k, w) for w in k.ravel()), reverse=True)) for layer, k in enumerate(kernels)]
    rest = sorted(((-score, layer) for layer, each in scores for score in each[1:]), key=lambda pair: pair)
    expected = np.ones(len(kernels), int)
    for _, layer in rest[: total - len(kernels)]:
        expected[layer] += 1
    assert found == expected.tolist()


def test_lamp_of_filters_takes_their_squared_norms() -> None:
    """Squared norms 4, 1, 1 and 9, 3: scores 1, 1/6, 1/6 and 1, 1/4."""
    params = layers(np.diag([2.0, 1, 1]), np.diag([3.0, math.sqrt(3)]))
    for total, kept in ((6, [1, 1]), (8, [1, 2]), (11, [2, 2]), (12, [2, 2]), (13, [3, 2])):
        found = layer_budgets(specs_of(params, Filter), params, rule="lamp", total=3 * (kept[0]) + 2 * kept[1])
        assert kept_by(found, params, Filter) == kept, total


def rigl_densities(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """Evci et al.: layers whose density would exceed 1 are dense, the factor of the others follows from the rest."""
    raw, dense = [sum(shape) / math.prod(shape) for shape in shapes], set[int]()
    while True:
        room = density * sum(map(math.prod, shapes)) - sum(math.prod(shapes[place]) for place in dense)
        sparse = [place for place in range(len(shapes)) if place not in dense]
        factor = room / sum(raw[place] * math.prod(shapes[place]) for place in sparse)
        above = {place for place in sparse if factor * raw[place] > 1}
        if not above:
            return [1.0 if place in dense else factor * raw[place] for place in range(len(shapes))]
        dense.add(max(above, key=lambda place: raw[place]))


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.7])
def test_erk_has_the_densities_of_the_paper(density: float) -> None:
    shapes = [(3, 3, 3, 16), (3, 3, 16, 32), (1, 1, 16, 32), (512, 40), (40, 10)]
    params = layers(*(np.ones(shape) for shape in shapes))
    found = kept_by(layer_budgets(specs_of(params, sparsity=1 - density), params, rule="erk"), params)
    for kept, expected, shape in zip(found, rigl_densities(shapes, density), shapes, strict=True):
        assert abs(kept - expected * math.prod(shape)) <= 1
    assert sum(found) == sum(num_kept(Irregular(1 - density), math.prod(shape)) for shape in shapes)


def test_erk_of_filters_is_the_density_of_whole_filters() -> None:
    params = layers(np.ones((3, 3, 8, 32)), np.ones((256, 64)))
    kept = kept_by(layer_budgets(specs_of(params, Filter), params, rule="erk", total=4_000), params, Filter)
    assert kept[0] / 32 / (kept[1] / 64) == pytest.approx((46 / 2304) / (320 / 16384), rel=0.1)


def test_normalised_scores_have_one_threshold() -> None:
    params = random_layers(3)
    kernels = [leaves["kernel"] for leaves in params.values()]
    values = [np.abs(kernel).ravel() / np.linalg.norm(kernel) for kernel in kernels]
    threshold = np.sort(np.concatenate(values))[-40]
    found = kept_by(layer_budgets(specs_of(params), params, rule="global_normalised", total=40), params)
    assert found == [int((each >= threshold).sum()) for each in values]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_the_total_is_met_within_one_structure_and_grows_with_it(rule: Rule, kind: type) -> None:
    params = random_layers(1)
    specs = specs_of(params, kind)
    count, widest = count_weights(specs, params), max(leaves["kernel"].shape[-1] for leaves in params.values())
    widest = {Irregular: 1, Filter: 18, Column: widest}[kind]
    before, all_weights = [0, 0, 0], sum(leaves["kernel"].size for leaves in params.values())
    for total in range(40, all_weights + 20, 7):
        kept = kept_by(layer_budgets(specs, params, rule=rule, total=total), params, kind)
        left = count(dict(zip(specs, kept, strict=True)))
        assert left <= total and (left > total - widest or left == all_weights)
        assert min(kept) >= 1 and all(new >= old for new, old in zip(kept, before, strict=True))
        before = kept


@pytest.mark.parametrize("rule", RULES)
def test_the_total_is_what_the_specs_keep(rule: Rule) -> None:
    params = random_layers(2)
    specs = {"fc0/kernel": Irregular(0.2), "fc2/kernel": Irregular(0.9)}
    found = layer_budgets(specs, params, rule=rule)
    assert found.keys() <= specs.keys()
    masks = masks_of(found, params)
    assert int(masks["fc0"]["kernel"].sum() + masks["fc2"]["kernel"].sum()) == 58 + 5
    assert masks["fc1"]["kernel"].all()


def test_uniform_is_the_budget_of_each_layer() -> None:
    params = random_layers(4)
    for kind, sparsity in itertools.product(KINDS, (0.25, 0.5, 0.9)):
        specs = specs_of(params, kind, sparsity)
        found = kept_by(layer_budgets(specs, params, rule="uniform"), params, kind)
        expected = kept_by(specs, params, kind)
        assert np.abs(np.subtract(found, expected)).max() <= 1, (kind, sparsity)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_channels_and_the_scale_of_layers_change_nothing(rule: Rule, kind: type) -> None:
    params = random_layers(5)
    generator = np.random.default_rng(0)
    moved = layers(*(
        4.0**place * generator.permuted(leaves["kernel"], axis=-1)[..., ::-1, :] if kind is Irregular
        else 4.0**place * leaves["kernel"][..., generator.permutation(leaves["kernel"].shape[-2]), :]
        [..., generator.permutation(leaves["kernel"].shape[-1])]
        for place, leaves in enumerate(params.values())
    ))  # fmt: skip
    found = [layer_budgets(specs_of(each, kind), each, rule=rule, total=60) for each in (params, moved)]
    assert found[0] == found[1] and len({spec.sparsity for spec in found[0].values()}) > 1


def test_what_a_structure_counts_is_the_callers() -> None:
    """A weight of fc0 costs ten times as much, and fc0 gets no more than before."""
    params = layers(np.ones((2, 5)), np.ones((2, 5)))
    specs = specs_of(params)
    uses = {"fc0/kernel": 10, "fc1/kernel": 1}
    count = count_weights(specs, params, uses)
    assert count({"fc0/kernel": 2, "fc1/kernel": 3}) == 23
    found = layer_budgets(specs, params, rule="uniform", total=60, count=count)
    assert kept_by(found, params) == [5, 5]


def test_batch_norm_filters_by_their_scales() -> None:
    """LAMP of 2, 1, 1 and 1, 1: 1, 1/6, 1/6 and 1/2, 1/2; ERK looks at the kernels."""
    layer = lambda kernel, scale: {
        "kernel": jnp.ones(kernel),
        "scale": jnp.asarray(scale),
        "shift": jnp.ones(len(scale)),
    }
    params = {"conv1": layer((3, 3, 1, 3), [1.0, 2.0, 1.0]), "conv2": layer((3, 3, 3, 2), [1.0, 1.0])}
    specs = {"conv1/scale": BatchNormFilter(0.5), "conv2/scale": BatchNormFilter(0.5)}
    assert layer_budgets(specs, params, rule="lamp", total=3) == {"conv1/scale": BatchNormFilter(2 / 3)}
    wide = params | {"conv2": layer((3, 3, 300, 2), [1.0, 1.0])}
    assert layer_budgets(specs, wide, rule="erk", total=4) == {"conv2/scale": BatchNormFilter(0.5)}


@pytest.mark.parametrize("rule", RULES)
def test_zeros_come_last(rule: Rule) -> None:
    zero = np.zeros((4, 5))
    zero[0] = 1
    params = layers(zero, np.arange(1.0, 21).reshape(4, 5), np.zeros((2, 2)))
    found = kept_by(layer_budgets(specs_of(params), params, rule=rule, total=26), params)
    assert found == [5, 20, 1]


def test_names_what_it_refuses() -> None:
    params = random_layers(6)
    specs = specs_of(params)
    for given_specs, changes, message in (
        (specs, {"rule": "best"}, "rule is 'best'; expected one of uniform, erk, lamp, global_normalised"),
        (specs, {"total": 2}, "total is 2; expected 3 or more: each layer keeps one structure"),
        ({"fc0/kernel": Irregular(0.5, "global")}, {}, "the budget 'global'; expected no stack of layers"),
        ({"fc0/kernel": Irregular(0.5, stack_axes=1)}, {}, "stack_axes 1"),
        ({"fc7/kernel": Irregular(0.5)}, {}, "Specs name fc7/kernel"),
    ):
        with pytest.raises(ValueError, match=message):
            layer_budgets(given_specs, params, **({"rule": "erk"} | changes))
    params["fc1"]["kernel"][0, 0] = np.nan
    with pytest.raises(ValueError, match="fc1/kernel has numbers that are NaN"):
        layer_budgets(specs, params, rule="lamp")
    assert layer_budgets({}, params, rule="erk") == {}
