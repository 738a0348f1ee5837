"""Strict JAX on eight CPU devices, for every test."""

import os
from collections.abc import Iterator

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def compiled_quickly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For files whose time would go into compiling: little optimisation, and no program twice."""
    from tiny import quick_compilation  # imports the whole package, once the devices are set

    with quick_compilation(tmp_path_factory.mktemp("compiled")):
        yield
