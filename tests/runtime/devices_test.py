"""How many devices a CPU becomes, and what a run says of them."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from rap_jax._runtime.devices import MIN_IMAGES_PER_DEVICE, choose_num_cpu_devices, start_cpu_devices, usable_cores
from rap_jax._runtime.mesh import make_mesh
from rap_jax.config import ComputeConfig, TrainConfig, free_attack
from rap_jax.training.provenance import describe_devices

ATTACK = tiny.tiny_config().train.attack


@given(batch_size=st.integers(1, 2000), num_cores=st.integers(1, 200))
def test_any_batch_has_its_devices(batch_size: int, num_cores: int) -> None:
    number = choose_num_cpu_devices(batch_size, num_cores)
    fits = lambda n: batch_size % n == 0 and n <= num_cores and batch_size // n >= MIN_IMAGES_PER_DEVICE
    assert number == 1 or fits(number)
    assert not any(fits(n) for n in range(number + 1, num_cores + 1))


@pytest.mark.parametrize(
    ("batch_size", "num_cores", "number"), [(128, 2, 2), (128, 64, 8), (64, 3, 2), (97, 8, 1), (8, 8, 1), (96, 3, 3)]
)
def test_numbers_of_devices(batch_size: int, num_cores: int, number: int) -> None:
    assert choose_num_cpu_devices(batch_size, num_cores) == number


def control_groups(folder: Path, process: str, files: dict[str, str]) -> tuple[Path, Path]:
    """The files that a process finds its control groups in."""
    (folder / "cgroup").write_text(process)
    for name, text in files.items():
        path = folder / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder / "cgroup", folder / "groups"


V1 = "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n3:cpuset:/\n"


@pytest.mark.parametrize(
    ("process", "files", "granted"),
    [
        ("0::/\n", {"cpu.max": "300000 100000"}, 3),
        ("0::/\n", {"cpu.max": "350000 100000"}, 3),  # half a core is none
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),  # but one there must be
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),  # a group above
        ("0::/a/b\n", {"cpu.max": "500000 100000", "a/b/cpu.max": "400000 100000"}, 4),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "600000", "cpu,cpuacct/cpu.cfs_period_us": "200000"}, 3),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, None),
        (V1, {"memory/cpu.max": "100000 100000"}, None),  # not a group of the processor
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("nonsense\n", {}, None),
    ],
)
def test_a_quota_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: str, files: dict[str, str], granted: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert usable_cores(*control_groups(tmp_path, process, files)) == (granted or 16)


def test_affinity_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert usable_cores(*control_groups(tmp_path, "0::/\n", {"cpu.max": "300000 100000"})) == 2
    assert usable_cores(tmp_path / "nothing", tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path / "nothing", tmp_path) == 1


def devices_of_a_new_process(num_devices: int, **environment: str) -> int:
    """How many devices JAX has in a process that may use 4 cores, for a batch of 128."""
    lines = [
        "from rap_jax._runtime import devices",
        "import jax",
        "devices.usable_cores = lambda: 4",
        f"devices.start_cpu_devices({num_devices}, batch_size=128)",
        "print(len(jax.devices()))",
    ]
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", "\n".join(lines)]
    return int(subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("num_devices", "environment", "expected"),
    [
        (0, {}, 4),
        (3, {}, 3),
        (0, {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
        (0, {"JAX_NUM_CPU_DEVICES": "6"}, 6),
        (2, {"XLA_FLAGS": "--xla_force_host_platform_device_count=5", "JAX_NUM_CPU_DEVICES": "6"}, 2),
    ],
)
def test_jax_starts_with_them(num_devices: int, environment: dict[str, str], expected: int) -> None:
    assert devices_of_a_new_process(num_devices, **environment) == expected


def test_a_jax_that_has_started_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = jax.device_count()
    monkeypatch.delenv("XLA_FLAGS")
    start_cpu_devices(0, batch_size=128)
    with pytest.raises(ValueError, match="num_cpu_devices is 3; expected 0, since JAX has started already"):
        start_cpu_devices(3, batch_size=128)
    assert jax.device_count() == before == 8


@pytest.mark.parametrize(
    ("train", "num_devices", "batch"),
    [
        (TrainConfig(ATTACK), 2, "batch 48 = 2 x 24"),
        (TrainConfig(ATTACK), 1, "batch 48"),
        (TrainConfig(ATTACK, attack_batch_norm="batch"), 2, "batch 48 on one of them (attack_batch_norm=batch)"),
        (TrainConfig(None), 2, "batch 48 on one of them (train_attack=none)"),
        (TrainConfig(free_attack("linf", 0.1), free_replays=2), 2, "batch 48 on one of them (train_attack=free)"),
        (TrainConfig(None), 1, "batch 48"),
    ],
)
def test_a_run_says_what_it_uses(
    monkeypatch: pytest.MonkeyPatch, train: TrainConfig, num_devices: int, batch: str
) -> None:
    monkeypatch.setattr("rap_jax.training.provenance.usable_cores", lambda: 2)
    config = dataclasses.replace(tiny.tiny_config(), train=train)
    say = lambda form: describe_devices(
        config, ComputeConfig(implementation=form), make_mesh(jax.devices()[:num_devices])
    )
    assert say("auto") == f"Devices: {num_devices} x cpu (2 cores), {batch}; convolutions: cpu form"
    assert say("xla").endswith("convolutions: xla form")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_cpu_devices": -1}, "num_cpu_devices is -1; expected 1 or more devices, or 0 to choose"),
        ({"implementation": "cuda"}, "implementation is 'cuda'; expected one of auto, cpu, xla"),
    ],
)
def test_impossible_ways_to_compute_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComputeConfig(**given)
