"""A batch in parts gives what the whole batch gives."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax._runtime.mesh import MAX_MICROBATCH_SIZE, make_mesh, map_microbatches

pytestmark = pytest.mark.usefixtures("optimised")


def of_platform(platform: str) -> Any:
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))


@pytest.mark.parametrize(
    ("platform", "num_images", "size"),
    [
        ("cpu", 64, 32),
        ("cpu", 250, 25),
        ("cpu", 32, 32),
        ("cpu", 7, 7),
        ("cpu", 97, 97),  # a prime
        ("cpu", 2 * 47, 2 * 47),  # parts of two would be no gain
        ("gpu", 64, 64),
    ],
)
def test_sizes_and_values(platform: str, num_images: int, size: int) -> None:
    seen = []

    def function(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        seen.append(len(batch["labels"]))
        return batch["images"].sum((1, 2)) + batch["labels"], jax.vmap(jax.random.uniform)(batch["keys"])

    batch = {
        "images": jnp.arange(num_images * 6.0).reshape(num_images, 2, 3),
        "labels": jnp.arange(num_images),
        "keys": jax.random.split(jax.random.key(0), num_images),
    }
    found = map_microbatches(function, batch, of_platform(platform))
    assert set(seen) == {size} and (size <= MAX_MICROBATCH_SIZE or size == num_images)
    for actual, expected in zip(found, function(batch), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_mesh_of_these_devices_is_a_cpu() -> None:
    sizes = set()
    map_microbatches(lambda x: sizes.add(len(x)) or x, jnp.zeros((64, 2)), make_mesh())
    assert sizes == {MAX_MICROBATCH_SIZE if jax.default_backend() == "cpu" else 64}
