"""How many devices JAX shall see on a CPU, which has to be said before it starts.

One device is all cores together, and its small operations keep only some of them busy. With one device per core, each
with its share of the batch, a training step on 2 cores took 107 ms instead of 131 (LeNet of width 4, batch 64, PGD-40)
and 1.22 s instead of 1.93 (ResNet-18 of width 4, batch 128, PGD-10)."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax

# With fewer images a device's operations are so small that starting them costs more than they do.
MIN_IMAGES_PER_DEVICE = 16
_FLAG_OF_XLA = "xla_force_host_platform_device_count"


def start_cpu_devices(num_devices: int, *, batch_size: int) -> None:
    """Makes JAX start with so many CPU devices, or with `choose_num_cpu_devices` of them for 0.

    To be called before anything uses JAX. No effect on accelerators. For 0 the user's own choice stays, made by
    XLA_FLAGS or JAX_NUM_CPU_DEVICES, and so does a JAX that has started already.

    Raises:
      ValueError: JAX has started, and `num_devices` is not 0.
    """
    chosen_by_user = _FLAG_OF_XLA in os.environ.get("XLA_FLAGS", "") or jax.config.values["jax_num_cpu_devices"] >= 0
    if num_devices == 0 and chosen_by_user:
        return
    try:
        wanted = num_devices or choose_num_cpu_devices(batch_size, usable_cores())
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError as error:
        if num_devices:
            message = f"num_cpu_devices is {num_devices}; expected 0, since JAX has started already ({error})."
            raise ValueError(message) from error


def choose_num_cpu_devices(batch_size: int, num_cores: int) -> int:
    """The largest number of devices that divides the batch, up to one per core, with 16 images or more for each."""
    most = min(num_cores, batch_size // MIN_IMAGES_PER_DEVICE)
    return max((number for number in range(1, most + 1) if batch_size % number == 0), default=1)


def usable_cores(proc: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: its affinity, and no more than its control groups grant; at least 1.

    The file `proc` names the control groups of the process, whose settings are in `groups`.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([affinity, *_quotas(proc, groups)])))


def _quotas(proc: Path, groups: Path) -> Iterator[float]:
    """Cores granted by each control group around the process that has a limit (versions 1 and 2)."""
    for folder in _groups_of_process(proc, groups):
        try:
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):  # not there, as in the uppermost group, or not to be read: no limit that we know
            continue


def _groups_of_process(proc: Path, groups: Path) -> Iterator[Path]:
    """The folders of the process's groups, each with all above it; a container often sees only the uppermost."""
    try:
        lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / controllers if controllers else groups
        inner = Path(path.lstrip("/"))
        yield from (root / part for part in (inner, *inner.parents))
