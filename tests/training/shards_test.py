"""State in pieces: what is cut where, and that a run with it ends with the weights of one without."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P
from tiny import parse_flags

from launch.configs import config_from_flags
from rap_jax._runtime.mesh import gather, make_mesh, split_over_data, state_shardings
from rap_jax.config import ComputeConfig, ModelConfig, PruneConfig
from rap_jax.pruning.specs import project_tree
from rap_jax.training import stage as stage_lib
from rap_jax.training.optimizer import specs_from_config

KERNELS = {"conv1": (3, 3, 16, 32), "fc1": (200, 64)}


def spec(shape: tuple[int, ...], num_model_shards: int = 4, min_size: int = 64) -> P:
    mesh = make_mesh(num_model_shards=num_model_shards)
    where = state_shardings({"leaf": jax.ShapeDtypeStruct(shape, np.float32)}, mesh, min_size=min_size)["leaf"]
    return getattr(where, "spec", P())


def normal(shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.key(len(shape)), shape)


def test_wide_arrays_are_cut_along_their_longest_axis_that_divides() -> None:
    assert spec((8, 16)) == P(None, "model")
    assert spec((16, 8)) == P("model", None)
    assert spec((16, 16)) == P("model", None), "the first of several"
    assert spec((3, 3, 8, 30)) == P(None, None, "model", None), "30 filters cannot be shared by 4"
    assert spec((7, 30)) == P(), "nothing divides"
    assert spec((256,)) == P(), "a bias"
    assert spec((4, 8)) == P(), "too small"
    assert spec((8, 16), num_model_shards=1) == P()


def test_a_batch_is_split_over_all_devices() -> None:
    mesh = make_mesh(num_model_shards=2)
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    x = jax.device_put(np.zeros((16, 3)), split_over_data(mesh))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 3)}


def test_a_number_that_does_not_divide_the_devices_is_refused() -> None:
    with pytest.raises(ValueError, match="num_model_shards is 3; expected a divisor of the 8 devices"):
        make_mesh(num_model_shards=3)


@pytest.mark.parametrize("structure", ["irregular", "column", "filter"])
@pytest.mark.parametrize("budget", ["layer", "global"])
def test_the_projection_of_kernels_in_pieces_is_that_of_whole_ones(structure: str, budget: str) -> None:
    mesh = make_mesh(num_model_shards=4)
    params = {name: {"kernel": normal(shape)} for name, shape in KERNELS.items()}
    config = PruneConfig(structure=structure, sparsity=(("*", 0.6),), budget=budget)
    specs = specs_from_config(config, params, output_layer="fc2")
    expected = jax.jit(lambda weights: project_tree(specs, weights))(params)
    places = state_shardings(params, mesh)
    found = jax.jit(lambda weights: project_tree(specs, gather(weights, mesh)), out_shardings=places)(
        jax.device_put(params, places)
    )
    for name, kernel in KERNELS.items():
        assert found[name]["kernel"].addressable_shards[0].data.size == np.prod(kernel) / 4
        np.testing.assert_array_equal(found[name]["kernel"], expected[name]["kernel"])
    assert 0.5 < np.mean(np.asarray(found["fc1"]["kernel"]) == 0) < 0.7 or budget == "global"


@pytest.mark.nightly
@pytest.mark.parametrize(("optimizer", "arrays_of_fc1"), [("sgd", 4), ("adam", 5)])
def test_a_run_ends_with_the_same_weights(
    optimizer: str, arrays_of_fc1: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one of them with SGD; Adam divides by the gradient's size, which leaves noise where that is nearly zero."""
    chosen = [f"--{stage}_optimizer={optimizer}" for stage in tiny.STAGES]
    config = dataclasses.replace(config_from_flags(parse_flags(*tiny.FLAGS, *chosen)), model=ModelConfig(width=4))
    whole = tiny.run_and_watch(tmp_path / "whole", config, devices=jax.devices()[:1])
    places = list[Any]()

    def watched(state: Any, mesh: Any) -> Any:
        places.append(state_shardings(state, mesh))
        return places[-1]

    monkeypatch.setattr(stage_lib, "state_shardings", watched)
    pieces = tiny.run_and_watch(
        tmp_path / "pieces", config, devices=jax.devices()[:4], compute=ComputeConfig(num_model_shards=2)
    )
    admm = [where.spec for where in jax.tree.leaves(places[1].train)]
    assert admm.count(P(None, "model")) == arrays_of_fc1, "weights, z, u and the moments"
    for stage, outcome in whole.outcomes.items():
        apart = jax.tree.map(lambda a, b: np.abs(a - b).ravel(), outcome.weights, pieces.outcomes[stage].weights)
        numbers = np.concatenate(jax.tree.leaves(apart))
        assert np.sum(numbers > 1e-5) <= (0 if optimizer == "sgd" else 3) and numbers.max() < 1e-4
        assert outcome.step == pieces.outcomes[stage].step
    losses = [[line["loss"] for line in tiny.metrics_of(run.folder) if "loss" in line] for run in (whole, pieces)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)
