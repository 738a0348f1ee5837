"""What a run will take is what it takes."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from tiers import nightly_but

from rap_jax._runtime.mesh import make_mesh
from rap_jax.config import ComputeConfig, ModelConfig
from rap_jax.training import stage as stage_lib
from rap_jax.training.forecast import forecast, format_forecast
from rap_jax.training.optimizer import StagePlan
from rap_jax.training.state import StageState
from rap_jax.training.task import Reached


def on_device(state: StageState, device: jax.Device) -> int:
    shards = [shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


@pytest.mark.e2e
@pytest.mark.parametrize("num_model_shards", nightly_but([1], [1, 2]))
def test_state_and_steps_are_those_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_model_shards: int
) -> None:
    config = tiny.tiny_config(model=ModelConfig(width=4), small_retrain=False)
    devices, compute = jax.devices()[:num_model_shards], ComputeConfig(num_model_shards=num_model_shards)
    found = forecast(config, tiny.tiny_dataset(), make_mesh(devices, num_model_shards=num_model_shards), compute)
    train, sizes = stage_lib.train_stage, dict[str, int]()

    def watched(plan: StagePlan, context: Any, train_step: Any, reached: Reached, manager: Any) -> Any:
        sizes[plan.stage] = on_device(reached.state, devices[0])
        return train(plan, context, train_step, reached, manager)

    monkeypatch.setattr(stage_lib, "train_stage", watched)
    tiny.run_and_watch(tmp_path / "run", config, devices=devices, compute=compute)
    assert {stage.stage: stage.state for stage in found.stages} == sizes
    assert [stage.num_steps for stage in found.stages] == [tiny.STEPS] * 3
    assert all(stage.program is not None and stage.program > 0 for stage in found.stages)
    assert [stage.images for stage in found.stages] == [config.batch_size // num_model_shards] * 3


@pytest.mark.e2e
def test_what_is_sent() -> None:
    config = dataclasses.replace(tiny.tiny_config(model=ModelConfig(width=4)), batch_size=48)
    params = 4 * forecast(config, tiny.tiny_dataset(), make_mesh(jax.devices()[:1]), ComputeConfig()).num_params
    pieces = make_mesh(jax.devices()[:4], num_model_shards=4)
    found = forecast(config, tiny.tiny_dataset(), pieces, ComputeConfig(num_model_shards=4))
    fc1 = 4 * 64 * 256  # the one array that is cut
    assert found.stages[0].sent == round(2 * 3 / 4 * params) + 3 * fc1 // 4


def test_data_that_stay_on_disk_are_not_on_the_device() -> None:
    data, config = tiny.tiny_dataset(), tiny.tiny_config()
    found = [forecast(config, data, make_mesh(), ComputeConfig(stream_data=on)).data for on in (False, True)]
    assert found[0] - found[1] == data.train.images.nbytes + data.train.labels.nbytes
    assert found[1] == sum(np.asarray(array).nbytes for split in (data.validation, data.test) for array in split)


def test_it_is_a_table() -> None:
    text = format_forecast(forecast(tiny.tiny_config(), tiny.tiny_dataset(), make_mesh(), ComputeConfig()))
    assert "MB of data on each device" in text and "| pretrain |     9 |" in text
