"""Packages that only an export needs: imported when they are used, and asked for in one line where they are absent."""

import importlib
import importlib.util
from typing import Any


def is_installed(name: str) -> bool:
    """Whether a package, such as `onnxruntime`, is there."""
    return importlib.util.find_spec(name) is not None


def optional_module(name: str) -> Any:
    """The module, such as `onnx`.

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
