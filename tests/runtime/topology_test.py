"""Devices of a machine that is not there: named rightly they are found, otherwise an error says what to write."""

import importlib.util
from typing import Any

import pytest

from rap_jax._runtime import topology
from rap_jax._runtime.topology import CHIPS, target_devices

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.parametrize(
    "target", ["v5e:2x2", "tpu", "tpu:v5e", "tpu:v5e:4", "gpu:h100:2x2", "tpu:v5e:2x2:2x2", "tpu:v5e:0x2", " "]
)
def test_a_target_is_written_in_one_way(target: str) -> None:
    with pytest.raises(ValueError, match=f"target is {target!r}; expected tpu:GENERATION:TOPOLOGY, such as"):
        target_devices(target)


def test_without_libtpu_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"its compiler is missing. Install it: pip install 'rap-jax\[tpu_aot\]'"):
        target_devices("tpu:v5e:2x2")


@needs_libtpu
@pytest.mark.parametrize(("target", "number"), [("tpu:v5e:1x1", 1), ("tpu:v5e:4x4", 16), ("tpu:v6e:2x2", 4)])
def test_the_devices_are_those_of_the_topology(target: str, number: int) -> None:
    devices = target_devices(target)
    assert len(devices) == number and {device.platform for device in devices} == {"tpu"}
    assert devices[0].device_kind in CHIPS


@needs_libtpu
@pytest.mark.parametrize("target", ["tpu:v99:2x2", "tpu:v5e:5x5", "tpu:v4:2x2x1"])
def test_what_libtpu_does_not_know_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=f"target is {target!r}, which libtpu or JAX refuses"):
        target_devices(target)


@pytest.mark.parametrize("kind", CHIPS)
def test_a_chip_computes_more_than_it_reads_and_reads_more_than_it_sends(kind: str) -> None:
    chip: Any = CHIPS[kind]
    assert chip.flops > 100 * chip.bandwidth and chip.bandwidth > 2 * chip.ring and 1e9 < chip.clock < 3e9
