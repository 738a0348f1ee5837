"""State in pieces: what is cut where, and that a run with it ends with the weights of one without."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from rap_jax import stage as stage_lib
from rap_jax.config import ComputeConfig, ModelConfig
from rap_jax.shards import state_home
from rap_jax.state import make_mesh, split_over_data

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def spec(shape: tuple[int, ...], num_model_shards: int = 4, least_size: int = 64) -> P:
    mesh = make_mesh(num_model_shards=num_model_shards)
    where = state_home({"leaf": jax.ShapeDtypeStruct(shape, np.float32)}, mesh, least_size=least_size)["leaf"]
    return getattr(where, "spec", P())


def test_wide_arrays_are_cut_along_their_longest_axis_that_divides() -> None:
    assert spec((8, 16)) == P(None, "model")
    assert spec((16, 8)) == P("model", None)
    assert spec((16, 16)) == P(None, "model"), "the last of several"
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


def test_a_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.tiny_config(model=ModelConfig(width=4))
    whole = tiny.run_and_watch(tmp_path / "whole", config, devices=jax.devices()[:1])
    places = list[Any]()

    def watched(state: Any, mesh: Any) -> Any:
        places.append(state_home(state, mesh))
        return places[-1]

    monkeypatch.setattr(stage_lib, "state_home", watched)
    pieces = tiny.run_and_watch(
        tmp_path / "pieces", config, devices=jax.devices()[:4], compute=ComputeConfig(num_model_shards=2)
    )
    admm = [str(where.spec) for _, where in jax.tree_util.tree_leaves_with_path(places[1].train)]
    assert admm.count("PartitionSpec(None, 'model')") == 5, "of fc1: weights, z, u and both moments"
    for stage, outcome in whole.outcomes.items():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
            outcome.weights,
            pieces.outcomes[stage].weights,
        )
        assert outcome.step == pieces.outcomes[stage].step
    losses = [[line["loss"] for line in tiny.metrics_of(run.folder) if "loss" in line] for run in (whole, pieces)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)
