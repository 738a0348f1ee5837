"""Packages and devices: what a number was computed with, for results.json, and packages that may be absent."""

import importlib
import importlib.util
import platform
from importlib import metadata
from typing import Any

from jax.sharding import Mesh

_PACKAGES = ("rap-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


def versions() -> dict[str, str]:
    """Name -> version, of Python and of the packages that numbers may depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def device_in_words(mesh: Mesh) -> str:
    """How many devices of which kind: `2 x cpu (cpu)`."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind} ({mesh.devices.flat[0].platform})"


def is_installed(name: str) -> bool:
    """Whether a package, such as `onnxruntime`, is there."""
    return importlib.util.find_spec(name) is not None


def optional_module(name: str) -> Any:
    """The module, such as `onnx`, of a package that only an export needs.

    Raises:
      ValueError: its package is not installed; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ValueError(
            f"{package} cannot be imported ({error}); expected it to be installed: pip install 'rap_jax[export]'."
        ) from error


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its sources without being installed
        return "not installed"
