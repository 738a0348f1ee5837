"""The step compiled by the TPU compiler, where libtpu is installed: `pip install 'rap-jax[tpu_aot]'`."""

import pytest
import tiny

from rap_jax._runtime.mesh import make_mesh
from rap_jax._runtime.topology import CHIPS, target_devices
from rap_jax.config import ComputeConfig, ModelConfig
from rap_jax.training.estimate import StepEstimate, count_kinds
from rap_jax.training.forecast import forecast

pytest.importorskip("libtpu")


def admm_step(target: str, *, width: int = 4, num_model_shards: int = 1) -> StepEstimate:
    mesh = make_mesh(target_devices(target), num_model_shards=num_model_shards)
    config = tiny.tiny_config(model=ModelConfig(width=width))
    found = forecast(config, tiny.tiny_dataset(), mesh, ComputeConfig(), with_estimate=True)
    step = found.stages[1].estimate
    assert step is not None
    return step


def test_the_admm_step_of_lenet_is_compiled_for_four_chips() -> None:
    one, four = admm_step("tpu:v5e:1x1"), admm_step("tpu:v5e:2x2")
    assert not one.collectives and count_kinds(four.collectives).keys() == {"all-reduce"}
    assert not any(collective.in_loop for collective in four.collectives), "the attack waits for no other device"
    for step in (one, four):
        assert step.cost_model is not None and step.roofline is not None and step.peak_share is not None
        assert 0 < step.peak_share < 1 and step.memory < CHIPS["TPU v5 lite"].memory
    assert four.flops == one.flops / 4


def test_the_state_lies_in_pieces() -> None:
    whole, pieces = (admm_step("tpu:v5e:2x2", width=32, num_model_shards=number) for number in (1, 4))
    assert pieces.memory < whole.memory
    assert not any(collective.in_loop for collective in pieces.collectives)
