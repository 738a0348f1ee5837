"""Strict JAX on eight CPU devices, compiled quickly, for every test."""

import gc
from collections.abc import Iterator

from compiling import set_environment

set_environment(num_devices=8)

import jax  # noqa: E402 - reads the environment
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes many objects that live on, and to look through all of them again and again takes long.
gc.set_threshold(100_000, 20, 100)


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """No file needs the programs of another one, which fill gigabytes in the end."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """For files whose numbers have to hold as users compile them: bounds, exact zeros, gradients."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left alone with one in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
