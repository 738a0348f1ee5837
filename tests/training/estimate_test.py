"""Times and bytes of a step by hand: cycles over the clock, a ring of all devices, the roofline's longer side."""

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from rap_jax._runtime.mesh import make_mesh
from rap_jax._runtime.topology import Chip
from rap_jax.config import ComputeConfig
from rap_jax.training import estimate
from rap_jax.training.estimate import HOP_SECONDS, StepEstimate, estimate_step
from rap_jax.training.start import choose_implementation

CHIP = Chip(flops=1e12, memory=1e9, bandwidth=1e10, ring=1e9, clock=1e9, wrap=16)
NUM_BYTES = 4 * 8 * 128
TEXT = """\
ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %y = f32[8,128]{1,0:T(8,128)S(1)} sine(%x), backend_config={"estimated_cycles":"5000"}
  ROOT %collected = f32[8,128]{1,0:T(8,128)S(1)} KIND(%y), to_apply=%add
}
"""


def estimate_of(kind: str, monkeypatch: pytest.MonkeyPatch, flops: float = 0.0, groups: str = "") -> StepEstimate:
    """On four devices in a row."""
    monkeypatch.setattr(estimate, "CHIPS", {"cpu": CHIP})
    sizes = SimpleNamespace(
        argument_size_in_bytes=100,
        temp_size_in_bytes=20,
        generated_code_size_in_bytes=3,
        output_size_in_bytes=50,
        alias_size_in_bytes=40,
    )
    text = TEXT.replace("KIND", kind).replace(", to_apply", f"{groups}, to_apply")
    compiled: Any = SimpleNamespace(as_text=lambda: text, memory_analysis=lambda: sizes)
    return estimate_step(compiled, make_mesh(jax.devices()[:4]), flops)


@pytest.mark.parametrize(
    ("kind", "times_around"), [("all-reduce", 2 * 3 / 4), ("all-gather", 3 / 4), ("reduce-scatter", 3.0)]
)
def test_a_ring_sends_and_waits(kind: str, times_around: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate_of(kind, monkeypatch)
    assert found.sent == times_around * NUM_BYTES
    # A sum goes there and back; the ends of a line have one link each, a ring two.
    hops = 3 * (2 if kind == "all-reduce" else 1)
    waiting = found.sent / (CHIP.ring / 2) + hops * HOP_SECONDS
    assert found.cost_model == pytest.approx(5000 / CHIP.clock + waiting)
    assert found.roofline == pytest.approx(NUM_BYTES / CHIP.bandwidth + waiting)
    assert found.memory == 100 + 20 + 3 + (50 - 40)


def test_only_the_devices_of_a_group_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate_of("all-gather", monkeypatch, groups=", replica_groups={{0,1},{2,3}}")
    assert found.sent == NUM_BYTES / 2
    assert found.cost_model == pytest.approx(5000 / CHIP.clock + found.sent / CHIP.ring + HOP_SECONDS)


def test_the_roofline_is_the_longer_of_products_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = estimate_of("all-reduce", monkeypatch, flops=2e9)
    assert found.cost_model is not None and found.roofline == pytest.approx(2e9 / CHIP.flops, rel=0.01)
    assert found.peak_share == pytest.approx(2e9 / found.cost_model / CHIP.flops)


@pytest.mark.parametrize(("platform", "chosen"), [("cpu", "auto"), ("tpu", "xla"), ("gpu", "xla")])
def test_the_devices_decide_how_convolutions_are_computed(platform: str, chosen: str) -> None:
    mesh: Any = SimpleNamespace(devices=SimpleNamespace(flat=[SimpleNamespace(platform=platform)]))
    assert choose_implementation(ComputeConfig(), mesh) == chosen
    assert choose_implementation(ComputeConfig(implementation="cpu"), mesh) == "cpu"
