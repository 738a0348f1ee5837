"""Strict JAX on eight CPU devices, compiled quickly, for every test; the tiers, and what the files share."""

import fcntl
import gc
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

from compiling import set_environment

set_environment(num_devices=8)

import jax  # noqa: E402 - reads the environment
import pytest  # noqa: E402
import tiny  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes many objects that live on, and to look through all of them again and again takes long.
gc.set_threshold(100_000, 20, 100)

_TESTS = Path(__file__).parent
_TIER_OF_FOLDER = {_TESTS / "e2e": pytest.mark.e2e, _TESTS / "nightly": pytest.mark.nightly}


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """No file needs the programs of another one, which fill gigabytes in the end."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def optimised(request: pytest.FixtureRequest) -> Iterator[None]:
    """For files whose numbers have to hold as users compile them: bounds, exact zeros, gradients.

    The default tier compiles them quickly, as all others: that takes half of the time.
    """
    quickly = "not e2e" in request.config.option.markexpr
    jax.config.update("jax_disable_most_optimizations", quickly)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tiny.Watched:
    """The tiny run, finished, with every checkpoint: one for all files and processes, so only copies may be changed."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    watched = folder / "finished.pickle"
    with (folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not watched.exists():
            found = tiny.run_and_watch(
                folder / "finished", output=tiny.EVERY_STEP, command="tiny --seed=1", flags="--seed=1\n"
            )
            watched.write_bytes(pickle.dumps(found))
    return pickle.loads(watched.read_bytes())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in the folder of a tier belong to it; files with long tests come first, or a process ends with one."""
    for item in items:
        for folder, tier in _TIER_OF_FOLDER.items():
            if folder in item.path.parents:
                item.add_marker(tier)
    long = {item.path for item in items if any(map(item.get_closest_marker, ("e2e", "nightly")))}
    items.sort(key=lambda item: item.path not in long)
