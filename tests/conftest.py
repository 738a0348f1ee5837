"""Strict JAX on eight CPU devices, for every test."""

import gc
import os
from collections.abc import Iterator

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes many objects that live on, and to look through all of them again and again takes long.
gc.set_threshold(100_000, 20, 100)


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """No file needs the programs of another one, which fill gigabytes in the end."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_quickly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For files whose time would go into compiling: little optimisation, and no program twice in a process of tests."""
    from tiny import quick_compilation  # imports the whole package, once the devices are set

    with quick_compilation(tmp_path_factory.getbasetemp() / "compiled"):
        yield


@pytest.fixture
def little_optimisation() -> Iterator[None]:
    """Compiles in a tenth of the time, without a cache of programs."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left alone with one in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
