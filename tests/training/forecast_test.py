"""What a run will take is what it takes."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh
from tiers import nightly_but

from rap_jax._runtime.mesh import make_mesh
from rap_jax._runtime.topology import Chip
from rap_jax.config import AttackConfig, ComputeConfig, ModelConfig, TrainConfig
from rap_jax.models import create_model
from rap_jax.training import estimate
from rap_jax.training import stage as stage_lib
from rap_jax.training.estimate import count_kinds, num_hops, step_flops
from rap_jax.training.forecast import Forecast, forecast, format_estimate, format_forecast
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
    of_one = 128 + 4  # a row of 64 bytes, filled up, and a label
    assert found[0] - found[1] == of_one * len(data.train.labels)
    assert found[1] == of_one * (len(data.validation.labels) + len(data.test.labels))


def test_it_is_a_table() -> None:
    text = format_forecast(forecast(tiny.tiny_config(), tiny.tiny_dataset(), make_mesh(), ComputeConfig()))
    assert "MB of data on each device" in text and "| pretrain |     9 |" in text


CHIP = Chip(flops=1e12, memory=1e9, bandwidth=1e10, ring=1e9, clock=1e9, wrap=16)


def estimated(devices: list[jax.Device], monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Forecast, Mesh]:
    monkeypatch.setattr(estimate, "CHIPS", {"cpu": CHIP})
    mesh = make_mesh(devices, num_model_shards=len(devices))  # of one axis, a CPU would have no single program
    config, compute = tiny.tiny_config(**changes), ComputeConfig(num_model_shards=len(devices))
    return forecast(config, tiny.tiny_dataset(), mesh, compute, with_estimate=True), mesh


@pytest.mark.e2e
def test_a_machine_that_is_not_there_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found, mesh = estimated(jax.devices()[:4], monkeypatch)
    text = format_estimate(found, mesh)
    for stage in found.stages:
        step = stage.estimate
        assert step is not None and step.cost_model is None, "XLA expects cycles of TPUs alone"
        assert step.roofline is not None and step.roofline > step.flops / CHIP.flops + step.sent / CHIP.ring
        assert not any(one.in_loop for one in step.collectives), "the attack waits for no other device"
        assert count_kinds(step.collectives)["all-reduce"] > 0 and step.sent > 0
        assert step.memory > stage.state
    assert "Compiled and estimated for 4 x cpu, not run." in text
    (row,) = (line for line in text.splitlines() if line.startswith("| admm"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "9" and "all-reduce" in cells[4] and cells[5] == "-" and float(cells[6]) > 0
    assert cells[7:] == ["-", "-", "-"], "no speed without a cost model"


@pytest.mark.parametrize(
    ("lengths", "wrap", "hops"),
    [((1, 1), 16, 0), ((2, 2), 16, 2), ((8, 8), 16, 14), ((16, 16), 16, 16), ((4, 2), 4, 3)],
)
def test_hops_go_the_short_way_around_a_ring(lengths: tuple[int, int], wrap: int, hops: int) -> None:
    assert num_hops([(x, y) for x in range(lengths[0]) for y in range(lengths[1])], wrap) == hops


@pytest.mark.parametrize("num_steps", [1, 3])
def test_flops_are_those_of_the_passes(num_steps: int) -> None:
    """Against XLA, which leaves out the products with the padding."""
    model = create_model(ModelConfig(width=2), input_shape=(28, 28, 1), num_classes=10, implementation="xla")
    weights = jax.eval_shape(model.init, jax.random.key(0))
    logits = jax.jit(lambda weights, x: model.logits(weights, x)).lower(
        weights, jax.ShapeDtypeStruct((4, 28, 28, 1), np.float32)
    )
    forward = step_flops(model, weights, TrainConfig(None), 4) / 3
    assert forward == pytest.approx(logits.cost_analysis()["flops"], rel=0.15)
    attacked = step_flops(model, weights, TrainConfig(AttackConfig(num_steps=num_steps)), 4)
    assert attacked == pytest.approx((2 * num_steps + 3) * forward)
    twice = step_flops(model, weights, TrainConfig(AttackConfig(num_steps=num_steps), awp_gamma=0.01), 4)
    assert twice == pytest.approx((2 * num_steps + 6) * forward)
    distilled = TrainConfig(AttackConfig(num_steps=num_steps), distillation="rslad")
    assert step_flops(model, weights, distilled, 4, "retrain") == pytest.approx((2 * num_steps + 7) * forward)
    assert step_flops(model, weights, distilled, 4, "pretrain") == attacked


def test_validation_counts_as_the_passes_that_it_takes() -> None:
    config = tiny.tiny_config()  # 3 epochs; 40 validation images, PGD-2 in training and in validation
    (stage, *_) = forecast(config, tiny.tiny_dataset(), make_mesh(), ComputeConfig()).stages
    assert stage.validation == pytest.approx(3 * 40 / 48 * (2 * 2 + 1) / (2 * 2 + 3))
    (strong, *_) = forecast(
        dataclasses.replace(config, selection="strong"), tiny.tiny_dataset(), make_mesh(), ComputeConfig()
    ).stages
    assert strong.validation == pytest.approx(3 * 40 / 48 * (1 + 2 * 3 * 20 + 200) / (2 * 2 + 3))
