"""What every method of pruning has to hold: counts, zeros, resuming, compaction, files."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiers import nightly_but

from rap_jax._runtime.mesh import make_mesh, state_shardings
from rap_jax.attacks.losses import cross_entropy
from rap_jax.compaction import compact
from rap_jax.compaction.cut import cut, masks_of_cut
from rap_jax.config import ModelConfig, OptimizerConfig, PruneConfig
from rap_jax.export.npz import npz_bytes, read_npz
from rap_jax.models import create_model
from rap_jax.models.model import Weights
from rap_jax.pruning.layers import kernels, leaves_by_name
from rap_jax.pruning.masks import apply_masks, apply_state_masks, both, count_sparsity
from rap_jax.pruning.projections import num_kept
from rap_jax.pruning.specs import masks_of_zeros
from rap_jax.runs import checkpoint
from rap_jax.training.optimizer import StagePlan, make_optimizer, make_pruner, specs_from_config

CASES = [
    ("hydra", "irregular", "layer"),
    ("hydra", "filter", "layer"),
    ("hydra", "column", "global"),
    ("harp", "irregular", "global"),
    ("harp", "filter", "global"),
    ("twinrep", "irregular", "global"),
    ("twinrep", "filter", "layer"),
    ("flyingbird", "irregular", "layer"),
    ("flyingbird", "column", "layer"),
    ("magnitude", "irregular", "layer"),
    ("random", "filter", "layer"),
    ("random", "irregular", "global"),
]
# One of each method; the others come at night.
IN_DEFAULT = {CASES[place] for place in (1, 3, 6, 7, 10)}
every_method = pytest.mark.parametrize(
    ("case",), nightly_but({(case,) for case in IN_DEFAULT}, [(case,) for case in CASES]), ids="-".join
)
one_of_each = pytest.mark.parametrize("case", sorted(IN_DEFAULT - {CASES[10]}), ids="-".join)
MODEL_CONFIG = ModelConfig("lenet_mnist", width=1, initializer="kaiming_normal")
MODEL = create_model(MODEL_CONFIG, input_shape=(8, 8, 1), num_classes=10, implementation="xla")
IMAGES, LABELS = jax.random.uniform(jax.random.key(5), (12, 32, 8, 8, 1)), jnp.arange(32) % 10
NUM_STEPS, KEY = 12, jax.random.key(7)
ADAM = OptimizerConfig("adam", 0.01, weight_decay=1e-3)
PLAN = StagePlan("admm", NUM_STEPS, 4, optax.constant_schedule(0.01))


class Method(NamedTuple):
    """A method, and what training by it begins with."""

    config: PruneConfig
    specs: dict[str, Any]
    tx: optax.GradientTransformationExtraArgs
    start: chex.ArrayTree

    @property
    def key(self) -> jax.Array | None:
        return KEY if self.config.method == "random" else None


def make_method(case: tuple[str, str, str], start: chex.ArrayTree, held: chex.ArrayTree | None = None) -> Method:
    """As the pipeline makes it."""
    name, structure, budget = case
    sparsity = (("*", 0.6),)
    given: Any = {"method": name, "structure": structure, "budget": budget}
    config = PruneConfig(sparsity=sparsity, **given, flyingbird_interval=0.5, twinrep_cut=0.3)
    specs = specs_from_config(config, start, output_layer=MODEL.output_layer)
    inner = make_optimizer(ADAM, PLAN.learning_rate)
    if not config.cuts_first:
        return Method(config, specs, make_pruner(inner, PLAN, config, specs, held), start)
    masks = masks_of_cut(specs, MODEL, start, KEY if name == "random" else None)
    masks = masks if held is None else both(masks, held)
    return Method(config, specs, make_optimizer(ADAM, PLAN.learning_rate, masks=masks), start)


def loss_fn(params: chex.ArrayTree, images: jax.Array) -> jax.Array:
    return cross_entropy(MODEL.logits(Weights(params, {}), images), LABELS).mean()


def one_step(tx: optax.GradientTransformationExtraArgs, params: Any, state: Any, number: jax.Array) -> tuple[Any, Any]:
    gradient = jax.grad(loss_fn)(params, IMAGES[number])
    with jax.numpy_dtype_promotion("standard"):
        updates, state = tx.update(gradient, state, params, dual_step=False, key=jax.random.fold_in(KEY, number))
    return optax.apply_updates(params, updates), state


def begin(method: Method) -> tuple[Any, Any]:
    state = jax.jit(method.tx.init)(method.start)
    return apply_state_masks(state, method.start), state


def masks_in(state: Any) -> Any:
    (node,) = [n for n in jax.tree.leaves(state, is_leaf=lambda n: hasattr(n, "masks")) if hasattr(n, "masks")]
    return node.masks


@functools.cache
def first_weights() -> chex.ArrayTree:
    return MODEL.init(jax.random.key(1)).params


@functools.cache
def trained(case: tuple[str, str, str]) -> tuple[Method, list[tuple[Any, Any]]]:
    """(params, state) at the start and after each step, on the host."""
    method = make_method(case, first_weights())
    step, found = jax.jit(functools.partial(one_step, method.tx)), [begin(method)]
    for number in range(NUM_STEPS):
        found.append(step(*found[-1], jnp.int32(number)))
    return method, jax.device_get(found)


def final(case: tuple[str, str, str]) -> tuple[Method, Weights]:
    """The network after the stage, and the cut that follows it."""
    method, states = trained(case)
    return method, jax.device_get(cut(method.specs, MODEL, Weights(states[-1][0], {}), method.key))


def kept_structures(case: tuple[str, str, str], params: Any) -> dict[str, int]:
    counted = count_sparsity(params)["layers"]
    key = {"filter": "filters_kept", "column": "columns_kept"}.get(case[1])
    return {name: row[key] if key else row["size"] - row["zeros"] for name, row in counted.items()}


@every_method
def test_the_count_is_exact(case: tuple[str, str, str]) -> None:
    method, states = trained(case)
    kept, leaves = kept_structures(case, states[-1][0]), leaves_by_name(method.start)
    if case[2] == "layer":
        sizes = {"irregular": lambda w: w.size, "filter": lambda w: w.shape[-1], "column": lambda w: w[..., 0].size}
        asked = {name: num_kept(spec, sizes[case[1]](leaves[name])) for name, spec in method.specs.items()}
        assert {name: kept[name] for name in asked} == asked
        return
    weights = {
        name: int((np.asarray(leaf) != 0).sum()) for name, leaf in kernels(states[-1][0]) if name in method.specs
    }
    total = num_kept(next(iter(method.specs.values())), sum(leaves[name].size for name in method.specs))
    largest = {"irregular": 1, "filter": 128, "column": 64}[case[1]]  # a structure that no longer fits
    assert total - largest < sum(weights.values()) <= total


@every_method
def test_masked_weights_are_exactly_zero_after_every_step(case: tuple[str, str, str]) -> None:
    _, states = trained(case)
    for params, state in states:
        for mask, weights in zip(jax.tree.leaves(masks_in(state)), jax.tree.leaves(params), strict=True):
            assert (np.asarray(weights)[~np.asarray(mask)] == 0).all()
    first, last = (jax.tree.leaves(masks_in(states[place][1])) for place in (0, -1))
    if case != ("hydra", "filter", "layer"):  # which keeps its first choice for so few steps
        assert any((a != b).any() for a, b in zip(first, last, strict=True)) == (case[0] not in ("magnitude", "random"))
    assert count_sparsity(states[-1][0])["overall"]["leftovers"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[-1][0]))


@every_method
def test_the_cut_takes_nothing_more(case: tuple[str, str, str]) -> None:
    (_, states), (_, weights) = trained(case), final(case)
    chex.assert_trees_all_equal(weights.params, states[-1][0])


@every_method
def test_zeros_stay_zero_through_the_retrain(case: tuple[str, str, str]) -> None:
    method, weights = final(case)
    masks = both(masks_of_cut(method.specs, MODEL, weights.params, method.key), masks_of_zeros(weights.params))
    tx = make_optimizer(ADAM, PLAN.learning_rate, masks=masks)
    step, params, state = jax.jit(functools.partial(one_step, tx)), weights.params, tx.init(weights.params)
    for number in range(3):
        params, state = step(params, state, jnp.int32(number))
    for (name, before), (_, after) in zip(kernels(weights.params), kernels(params), strict=True):
        np.testing.assert_array_equal(np.asarray(before) == 0, np.asarray(after) == 0, err_msg=name)
        assert (np.asarray(before) != np.asarray(after)).any()


@every_method
def test_a_resumed_training_ends_with_the_same_bits(case: tuple[str, str, str], tmp_path: Path) -> None:
    method, states = trained(case)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    halfway = jax.device_put(states[NUM_STEPS // 2], where)
    checkpoint.save(checkpoint.open_checkpoints(tmp_path), 1, halfway, {})
    template = checkpoint.abstract_like(jax.eval_shape(lambda: halfway), where)
    restored = checkpoint.restore_latest(checkpoint.open_checkpoints(tmp_path), template)
    assert restored is not None
    step, found = jax.jit(functools.partial(one_step, method.tx)), restored.state
    for number in range(NUM_STEPS // 2, NUM_STEPS):
        found = step(*found, jnp.int32(number))
    chex.assert_trees_all_equal(jax.device_get(found), states[-1])


@every_method
def test_the_compacted_network_is_the_masked_one(case: tuple[str, str, str]) -> None:
    _, weights = final(case)
    small = compact(MODEL, weights.params, weights.batch_stats)
    assert case[1] != "filter" or small.model.features
    expected, found = (model.logits(w, IMAGES[0]) for model, w in ((MODEL, weights), (small.model, small.weights)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@every_method
def test_a_file_of_the_network_holds_the_same_bits(case: tuple[str, str, str], tmp_path: Path) -> None:
    _, weights = final(case)
    about = {
        "input_shape": (8, 8, 1), "num_classes": 10, "features": {}, "folded": False, "name": MODEL_CONFIG.name,
        "width": MODEL_CONFIG.width, "initializer": MODEL_CONFIG.initializer,
    }  # fmt: skip
    (tmp_path / "network.npz").write_bytes(npz_bytes(weights, {"network": about}))
    chex.assert_trees_all_equal(read_npz(tmp_path / "network.npz").weights.params, weights.params)


@pytest.mark.e2e
@every_method
def test_zeros_of_the_start_stay_and_count(case: tuple[str, str, str]) -> None:
    first = make_method(("magnitude", *case[1:]), first_weights())
    fewer = {name: type(spec)(0.3, spec.budget) for name, spec in first.specs.items()}
    start = apply_masks(masks_of_cut(fewer, MODEL, first.start), first.start)
    held = masks_of_zeros(start)
    method = make_method(case, start, held)
    step, (params, state) = jax.jit(functools.partial(one_step, method.tx)), begin(method)
    for number in range(NUM_STEPS):
        params, state = step(params, state, jnp.int32(number))
        for mask, weights in zip(jax.tree.leaves(held), jax.tree.leaves(params), strict=True):
            assert (np.asarray(weights)[~np.asarray(mask)] == 0).all()
    kept, expected = kept_structures(case, params), kept_structures(case, trained(case)[1][-1][0])
    if case[2] == "layer" or case[1] == "irregular":
        assert sum(kept.values()) == sum(expected.values())


@pytest.mark.e2e
@one_of_each
def test_seeds_that_train_together_are_those_alone(case: tuple[str, str, str]) -> None:
    method, states = trained(case)
    other = jax.tree.map(lambda leaf: 1.1 * leaf, states[0][0])
    begun = [begin(method), begin(method._replace(start=other))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *begun)
    step = functools.partial(one_step, method.tx)
    together = jax.jit(jax.vmap(step, (0, 0, None)))(*stacked, jnp.int32(5))
    for place, one in enumerate(begun):
        alone = jax.jit(step)(*one, jnp.int32(5))
        found = jax.tree.map(lambda leaf, place=place: leaf[place], together)
        chex.assert_trees_all_close(found, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.e2e
@one_of_each
def test_a_state_in_pieces_moves_as_a_whole_one(case: tuple[str, str, str]) -> None:
    method, states = trained(case)
    mesh = make_mesh(num_model_shards=2)
    pieces = jax.device_put(states[5], state_shardings(states[5], mesh, min_size=64))
    found = jax.jit(functools.partial(one_step, method.tx))(*pieces, jnp.int32(5))
    chex.assert_trees_all_close(jax.device_get(found), states[6], rtol=1e-4, atol=1e-5)
