"""What a number was computed with: versions and devices, for results.json."""

import platform
from importlib import metadata

from jax.sharding import Mesh

_PACKAGES = ("rap-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def versions() -> dict[str, str]:
    """Name -> version, of Python and of the packages that numbers may depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def device_in_words(mesh: Mesh) -> str:
    """How many devices of which kind: `2 x cpu (cpu)`."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({mesh.devices.flat[0].platform})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its sources without being installed
        return "not installed"
