"""What belongs to a filter in networks that others wrote: found, named by `belongs`, or refused, never half removed."""

import dataclasses
import functools
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rap_jax.pruning.admm import add_admm_penalty, find_admm_state
from rap_jax.pruning.masks import count_sparsity, keep_masked
from rap_jax.pruning.projections import BatchNormFilter, Column, Filter, Irregular
from rap_jax.pruning.specs import masks_of, masks_of_zeros, only_selected, project_tree, selected

pytestmark = pytest.mark.usefixtures("optimised")

random = np.random.default_rng(0)
BELONGS = ("BatchNorm_0/bias", "BatchNorm_0/scale")


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(random.normal(size=shape), jnp.float32)


def flax_params(norm: str = "BatchNorm_0") -> dict[str, Any]:
    """A convolution with a normalisation beside it, as Flax and others build it."""
    return {
        "Conv_0": {"kernel": normal(3, 3, 2, 8)},
        norm: {"scale": normal(8), "bias": normal(8)},
        "Dense_0": {"kernel": normal(8, 5), "bias": normal(5)},
    }


@pytest.mark.parametrize("norm", ["BatchNorm_0", "GroupNorm_0"])
@pytest.mark.parametrize("function", [masks_of, lambda specs, params: selected(specs, params)])
def test_a_filter_of_which_a_part_may_lie_elsewhere_is_refused(norm: str, function: Any) -> None:
    with pytest.raises(ValueError, match=rf"Conv_0/kernel with Filter.*{norm}/bias, {norm}/scale could.*belongs=\(\)"):
        function({"Conv_0/kernel": Filter(0.5)}, flax_params(norm))
    function({"Conv_0/kernel": Filter(0.5, belongs=())}, flax_params(norm))
    function({"Dense_0/kernel": Filter(0.4)}, flax_params(norm))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3), use_bias=False)(x)))
        self.sow("intermediates", "sent", x)
        return nn.Dense(5)(nn.Dropout(0.5, deterministic=True)(x.mean((1, 2))))


@pytest.mark.e2e
def test_what_is_named_goes_with_the_filters_of_a_flax_network() -> None:
    """In ADMM, at the cut and in the masked retrain: a filter that is gone sends nothing."""
    images = normal(4, 6, 6, 1)
    variables = Net().init(jax.random.key(0), images)
    params = jax.tree.map(lambda w: w + 0.3 * normal(*w.shape), variables["params"])
    specs = {"Conv_0/kernel": Filter(0.5, belongs=BELONGS)}
    assert selected(specs, params)["BatchNorm_0"] == {"scale": True, "bias": True}
    cut = project_tree(specs, params)
    tx = optax.chain(optax.adam(0.1), keep_masked(masks_of(specs, params)))

    def logits(params: Any) -> Any:
        return Net().apply(variables | {"params": params}, images, mutable=["intermediates"])

    gradient = jax.grad(lambda params: jnp.sum(logits(params)[0] ** 2))(cut)
    trained = optax.apply_updates(cut, tx.update(gradient, tx.init(cut), cut)[0])
    gone = ~np.asarray(cut["Conv_0"]["kernel"]).any((0, 1, 2))
    for network in (cut, trained):
        assert gone.sum() == 4 and not np.asarray(logits(network)[1]["intermediates"]["sent"][0])[..., gone].any()
    assert count_sparsity(cut, specs=specs)["overall"]["leftovers"] == 0
    half = {**cut, "BatchNorm_0": params["BatchNorm_0"]}
    assert count_sparsity(half, specs=specs)["overall"]["leftovers"] == 8
    zeros = masks_of_zeros(cut, specs=specs)["BatchNorm_0"]
    np.testing.assert_array_equal(zeros["bias"], ~gone)


def test_admm_pulls_what_is_named_to_zero() -> None:
    params = flax_params()
    specs = {"Conv_0/kernel": Filter(0.5, belongs=BELONGS)}
    tx = optax.masked(add_admm_penalty(1.0, functools.partial(project_tree, specs)), selected(specs, params))
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, dual_step=True)
    gone = ~np.asarray(masks_of(specs, params)["BatchNorm_0"]["scale"])
    z = find_admm_state(state).z
    for leaf in ("scale", "bias"):
        np.testing.assert_array_equal(np.asarray(z["BatchNorm_0"][leaf]) == 0, gone)
        assert np.asarray(updates["BatchNorm_0"][leaf])[gone].all()


def test_belongs_is_hashable_and_checked() -> None:
    assert hash(Filter(0.5, belongs={"b", "a"})) == hash(Filter(0.5, belongs=["a", "b"]))
    with pytest.raises(ValueError, match="belongs is 'ab'"):
        Filter(0.5, belongs="ab")
    for belongs, message in [("BatchNorm_1/bias", "names BatchNorm_1/bias; expected"), ("Dense_0/bias", "8 outputs")]:
        with pytest.raises(ValueError, match=message):
            masks_of({"Conv_0/kernel": Filter(0.5, belongs=[belongs])}, flax_params())


def test_a_scale_that_stands_alone_needs_its_kernel() -> None:
    params = flax_params()
    with pytest.raises(ValueError, match="no kernel lies beside the scale; Conv_0/kernel could"):
        masks_of({"BatchNorm_0/scale": BatchNormFilter(0.5)}, params)
    specs = {"BatchNorm_0/scale": BatchNormFilter(0.5, belongs=["Conv_0/kernel"])}
    assert selected(specs, params)["Conv_0"] == {"kernel": False}
    assert selected(specs, params)["BatchNorm_0"] == {"scale": True, "bias": True}
    project_tree(specs, only_selected(specs, params))
    cut = project_tree(specs, params)
    gone = np.asarray(cut["BatchNorm_0"]["scale"]) == 0
    assert gone.sum() == 4 and count_sparsity(cut, specs=specs)["overall"]["leftovers"] == 0
    np.testing.assert_array_equal(~np.asarray(cut["Conv_0"]["kernel"]).any((0, 1, 2)), gone)
    np.testing.assert_array_equal(np.asarray(cut["BatchNorm_0"]["bias"]) == 0, gone)


def test_haiku_names_are_found() -> None:
    params = {"net/~/conv": {"w": normal(3, 3, 2, 4), "b": jnp.ones(4)}}
    cut = project_tree({"net/~/conv/w": Filter(0.5)}, params)
    gone = ~np.asarray(cut["net/~/conv"]["w"]).any((0, 1, 2))
    np.testing.assert_array_equal(np.asarray(cut["net/~/conv"]["b"]) == 0, gone)
    assert gone.sum() == 2 and count_sparsity(cut, specs={"net/~/conv/w": Filter(0.5)})["overall"]["zeros"] == 36
    with pytest.raises(ValueError, match=r"No weights are named kernel, but net/~/conv/w"):
        count_sparsity(params)
    normed = params | {"net/~/norm": {"scale": jnp.ones((1, 1, 1, 4)), "offset": jnp.ones((1, 1, 1, 4))}}
    with pytest.raises(ValueError, match="net/~/norm/offset, net/~/norm/scale could belong"):
        project_tree({"net/~/conv/w": Filter(0.5)}, normed)
    named = Filter(0.5, belongs=["net/~/norm/scale", "net/~/norm/offset"])
    assert (np.asarray(project_tree({"net/~/conv/w": named}, normed)["net/~/norm"]["offset"]) == 0).sum() == 2


def test_two_weights_in_one_layer_need_the_names() -> None:
    params = {"w1": normal(3, 4), "b1": jnp.ones(4), "w2": normal(4, 4), "b2": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"w1 with Filter.*b1, b2 could belong"):
        project_tree({"w1": Filter(0.5)}, params)
    specs = {"w1": Filter(0.5, belongs=["b1"]), "w2": Filter(0.25, belongs=["b2"])}
    for show in (lambda specs, params: params, only_selected):
        cut = project_tree(specs, show(specs, params))
        assert [(np.asarray(cut[name]) == 0).sum() for name in ("b1", "b2")] == [2, 1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class OutputsFirst:
    """A layer as Equinox has it: weight [out, in, ...], bias [out, ...]."""

    weight: jax.Array
    bias: jax.Array


@pytest.mark.parametrize("kind", [Filter, Column])
@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (8, 8), (4, 8)])
def test_outputs_on_the_first_axis_are_refused(kind: type, shape: tuple[int, ...]) -> None:
    layer = OutputsFirst(normal(*shape), normal(shape[0], *[1] * (len(shape) - 2)))
    with pytest.raises(ValueError, match=r"layers/0/weight has shape.*outputs on the last axis"):
        masks_of({"layers/0/weight": kind(0.5)}, {"layers": [layer]})
    masks = masks_of({"layers/0/weight": Irregular(0.5)}, {"layers": [layer]})
    assert masks["layers"][0].bias.all() and not masks["layers"][0].weight.all()


@pytest.mark.parametrize("kind", [Filter, Column, Irregular])
@given(values=st.lists(st.integers(-9, 9), min_size=36, max_size=36), sparsity=st.sampled_from([0.3, 0.6]))
@settings(deadline=None, max_examples=4)
def test_each_layer_of_a_stack_makes_its_own_choice(kind: type, values: list[int], sparsity: float) -> None:
    """As a scan or vmap stacks them; nothing tells a stack from a layer, so the spec has to."""
    stack = {"cell": {"kernel": jnp.asarray(values, jnp.float32).reshape(3, 3, 4), "bias": jnp.ones((3, 4))}}
    for function in (masks_of, lambda specs, params: selected(specs, params)):
        with pytest.raises(ValueError, match="stack of layers.*stack_axes=1"):
            function({"cell/kernel": kind(sparsity)}, stack)
    specs = {"cell/kernel": kind(sparsity, stack_axes=1)}
    masks = masks_of(specs, stack)
    for layer in range(3):
        alone = masks_of({"cell/kernel": kind(sparsity)}, jax.tree.map(lambda w, layer=layer: w[layer], stack))
        jax.tree.map(lambda all_of, one, layer=layer: np.testing.assert_array_equal(all_of[layer], one), masks, alone)
    cut = project_tree(specs, stack)
    assert count_sparsity(cut, specs=specs)["overall"]["leftovers"] == 0
    zeros = masks_of_zeros(cut, specs=specs)["cell"]
    np.testing.assert_array_equal(zeros["kernel"], np.asarray(cut["cell"]["kernel"]) != 0)
    np.testing.assert_array_equal(zeros["bias"], zeros["kernel"].any(1))


@pytest.mark.parametrize("kind", [Filter, Column])
def test_outputs_on_several_axes_are_refused(kind: type) -> None:
    heads = {"query": {"kernel": normal(8, 2, 4), "bias": normal(2, 4)}}
    for specs in ({"query/kernel": kind(0.5)}, {"query/kernel": kind(0.5, stack_axes=0)}):
        with pytest.raises(ValueError, match=r"query/kernel has shape \(8, 2, 4\).*several axes"):
            masks_of(specs, heads)
    with pytest.raises(ValueError, match="query/kernel has shape"):
        masks_of_zeros(heads)
    with pytest.raises(ValueError, match="query/kernel has shape"):
        count_sparsity(heads)


def test_a_bias_tells_a_convolution_of_one_axis_from_a_stack() -> None:
    kernel = normal(5, 3, 4)
    masks = masks_of({"conv/kernel": Filter(0.5)}, {"conv": {"kernel": kernel, "bias": jnp.ones(4)}})
    assert masks["conv"]["bias"].sum() == 2
    with pytest.raises(ValueError, match="nothing beside it tells which"):
        masks_of({"conv/kernel": Filter(0.5)}, {"conv": {"kernel": kernel}})
    for kind in (Filter, Column, Irregular):  # what `optax.masked` hides has told it
        specs, params = {"conv/kernel": kind(0.5)}, {"conv": {"kernel": kernel, "bias": jnp.ones(4)}}
        project_tree(specs, only_selected(specs, params))
    masks = masks_of({"conv/kernel": Filter(0.5, stack_axes=0)}, {"conv": {"kernel": kernel}})
    assert masks["conv"]["kernel"].any((0, 1)).sum() == 2


def test_a_stack_of_scales() -> None:
    stack = {"cell": {"kernel": normal(3, 2, 4), "scale": normal(3, 4), "shift": jnp.ones((3, 4))}}
    cut = project_tree({"cell/scale": BatchNormFilter(0.5, stack_axes=1)}, stack)["cell"]
    gone = np.asarray(cut["scale"]) == 0
    np.testing.assert_array_equal(gone.sum(1), [2, 2, 2])
    np.testing.assert_array_equal(np.asarray(cut["shift"]) == 0, gone)
    np.testing.assert_array_equal(~np.asarray(cut["kernel"]).any(1), gone)


def test_frozen_and_boxed_trees_have_the_same_names() -> None:
    plain = {"Dense_0": {"kernel": normal(3, 4), "bias": jnp.ones(4)}}
    boxed = jax.tree.map(lambda w: nn.Partitioned(w, (None,) * w.ndim), plain)
    specs = {"Dense_0/kernel": Filter(0.5)}
    expected = jax.tree.leaves(project_tree(specs, plain))
    for tree in (flax.core.freeze(plain), boxed):
        for found, leaf in zip(jax.tree.leaves(project_tree(specs, tree)), expected, strict=True):
            np.testing.assert_array_equal(found, leaf)
        tx = optax.masked(add_admm_penalty(1.0, functools.partial(project_tree, specs)), selected(specs, tree))
        tx.update(tree, tx.init(tree), tree, dual_step=True)


def test_two_leaves_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="Two leaves of the tree are named 'a/kernel'"):
        masks_of({"a/kernel": Filter(0.5)}, {"a/kernel": normal(2, 4), "a": {"kernel": normal(2, 4)}})


STACK = {"cell": {"kernel": normal(3, 6, 8), "bias": normal(3, 8)}}


@pytest.mark.parametrize("norm", [{"scale": normal(3, 8), "bias": normal(3, 8)}, {"shift": normal(3, 1, 8)}])
def test_a_normalisation_of_the_same_stack_is_named_or_refused(norm: dict[str, Any]) -> None:
    params = STACK | {"norm": norm}
    with pytest.raises(ValueError, match=f"cell/kernel with Filter.*norm/{min(norm)}.*could belong"):
        masks_of({"cell/kernel": Filter(0.5, stack_axes=1)}, params)
    named = Filter(0.5, stack_axes=1, belongs=[f"norm/{leaf}" for leaf in norm])
    cut = project_tree({"cell/kernel": named}, params)
    assert all((np.asarray(leaf) == 0).sum() == 12 for leaf in cut["norm"].values())
    masks_of({"cell/kernel": Filter(0.5, stack_axes=1, belongs=())}, params)


def test_a_scale_of_a_stack_finds_no_kernel_in_the_bias_beside() -> None:
    params = STACK | {"norm": {"scale": normal(3, 8), "bias": normal(3, 8)}}
    with pytest.raises(ValueError, match="no kernel lies beside the scale; cell/kernel could"):
        masks_of({"norm/scale": BatchNormFilter(0.5, stack_axes=1)}, params)


def test_a_stack_under_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="cell/w with Filter.*cell/b could belong"):
        masks_of({"cell/w": Filter(0.5, stack_axes=1)}, {"cell": {"w": normal(3, 6, 8), "b": normal(3, 8)}})


HEADS = {"query": {"kernel": normal(8, 2, 4), "bias": normal(2, 4)}, "mlp": {"kernel": normal(8, 6), "bias": normal(6)}}


@pytest.mark.parametrize("stack_axes", [None, 0])
def test_single_weights_go_where_outputs_lie_on_several_axes(stack_axes: int | None) -> None:
    specs = {"query/kernel": Irregular(0.5, stack_axes=stack_axes)}
    cut = project_tree(specs, HEADS)
    found = count_sparsity(cut, specs=specs)
    assert found["layers"]["query/kernel"]["zeros"] == 32 and found["layers"]["query/kernel"]["filters"] is None
    assert found["overall"]["size"] == 8 * 8 + 48
    np.testing.assert_array_equal(masks_of_zeros(cut, specs=specs)["query"]["kernel"], cut["query"]["kernel"] != 0)


@pytest.mark.parametrize("other", [HEADS["query"], STACK["cell"]])
def test_weights_without_a_spec_are_no_reason_to_refuse(other: dict[str, Any]) -> None:
    params, specs = {"other": other, "mlp": HEADS["mlp"]}, {"mlp/kernel": Filter(0.5)}
    cut = project_tree(specs, params)
    found = count_sparsity(cut, specs=specs)["layers"]
    assert found["mlp/kernel"]["filters_kept"] == 3 and found["mlp/kernel"]["leftovers"] == 0
    assert found["other/kernel"]["zeros"] == 0 and found["other/kernel"]["filters"] is None
    zeros = masks_of_zeros(cut, specs=specs)
    assert zeros["other"]["kernel"].all() and zeros["mlp"]["bias"].sum() == 3


@pytest.mark.parametrize("kind", [Filter, Column])
@pytest.mark.parametrize(
    "kernel,bias,stack_axes", [((3, 3, 7, 3), 7, None), ((3, 3, 7, 1), 7, 0), ((6, 3, 8), (8, 3), 1), ((9, 6), 9, None)]
)
def test_a_bias_that_does_not_fit_the_last_axis_is_refused(kind: type, kernel: Any, bias: Any, stack_axes: Any) -> None:
    layer = {"kernel": normal(*kernel), "bias": jnp.ones(bias)}
    with pytest.raises(ValueError, match=r"conv/kernel has shape .* outputs are not on the last axis"):
        masks_of({"conv/kernel": kind(0.5, stack_axes=stack_axes)}, {"conv": layer})
    masks_of({"conv/kernel": Irregular(0.5, stack_axes=stack_axes)}, {"conv": layer})


@pytest.mark.parametrize("nested", [False, True])
def test_a_wider_leaf_with_the_same_outputs_is_named_or_refused(nested: bool) -> None:
    """As a LoRA adds to its layer, beside the kernel or below."""
    low_rank = {"lora_a": normal(6, 2), "lora_b": normal(2, 8)}
    params = {"fc": {"kernel": normal(6, 8), "bias": normal(8)} | ({"lora": low_rank} if nested else low_rank)}
    name = "fc/lora/lora_b" if nested else "fc/lora_b"
    with pytest.raises(ValueError, match=f"fc/kernel with Filter.*: {name} could belong"):
        masks_of({"fc/kernel": Filter(0.5)}, params)
    cut = project_tree({"fc/kernel": Filter(0.5, belongs=[name])}, params)["fc"]
    lora_b = np.asarray((cut["lora"] if nested else cut)["lora_b"])
    np.testing.assert_array_equal(lora_b.any(0), np.asarray(cut["kernel"]).any(0))
    masks_of({"fc/kernel": Filter(0.5, belongs=())}, params)


@pytest.mark.parametrize(
    "specs", [None, Filter(0.5), ["mlp/kernel"], {"mlp/kernel": 0.5}, {"mlp/kernel": Filter}, HEADS]
)
def test_what_is_no_mapping_of_names_to_sets_is_refused(specs: Any) -> None:
    functions = [masks_of, project_tree, lambda specs, params: selected(specs, params)]
    if specs is not None:
        functions += [lambda specs, params: count_sparsity(params, specs=specs)]
    for function in functions:
        with pytest.raises(ValueError, match=r"specs (are|hold) .*expected \{'conv1/kernel': Filter\(0.5\)"):
            function(specs, HEADS)


@pytest.mark.parametrize("leaf", [1.0, True, "relu", jax.nn.relu])
def test_a_leaf_that_is_no_array_is_refused_by_name(leaf: Any) -> None:
    params, specs = HEADS | {"extra": leaf}, {"mlp/kernel": Filter(0.5)}
    for function in (masks_of, lambda specs, params: selected(specs, params)):
        with pytest.raises(ValueError, match="extra is .*; expected an array"):
            function(specs, params)
    for call in (count_sparsity, keep_masked(HEADS).init, add_admm_penalty(1.0, lambda w: w).init):
        with pytest.raises(ValueError, match="extra is .*; expected an array"):
            call(params)


@pytest.mark.parametrize("sparsity", ["0.5", None, True, 0.5j, [0.5], np.array([0.5])])
def test_a_sparsity_that_is_no_number_is_refused(sparsity: Any) -> None:
    with pytest.raises(ValueError, match="sparsity is .*; expected a share of zeros"):
        Filter(sparsity)
    assert Filter(np.float32(0.5)) == Filter(0.5)
