"""What a measurement was taken on: versions, processor, date."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "jaxlib", "torch", "numpy")


def describe_machine() -> dict[str, Any]:
    """What has to stand beside a time: date, processor, cores that this process may use, versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor_name(),
        "cores": num_cores(),
        "versions": {"python": platform.python_version()} | _versions(),
    }


def machine_line(machine: Mapping[str, Any]) -> str:
    """The same in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['date']}: {machine['processor']}, {machine['cores']} cores; {versions}"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor's own name where the system tells it, or its kind."""
    about = Path("/proc/cpuinfo")
    fields = (
        dict(line.split(":", 1) for line in about.read_text().splitlines() if ":" in line) if about.exists() else {}
    )
    names = {key.strip(): value.strip() for key, value in fields.items()}
    if "model name" not in names:
        return platform.processor() or platform.machine()
    numbers = f" (family {names['cpu family']}, model {names['model']})" if "cpu family" in names else ""
    return names["model name"] + numbers


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
