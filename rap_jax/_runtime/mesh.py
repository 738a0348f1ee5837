"""The mesh of devices, where arrays lie on it, and microbatches.

One mesh axis, `data`: the state is replicated, a batch is split over the devices, and XLA inserts the sums over
devices, because losses and BatchNorm statistics are means over the global batch. With a second axis, `model`, each of
its devices holds a shard of every large array of the state. A step gathers the weights once, computes with complete
weights on its share of the batch, and keeps its own shard of the result, as in FSDP (Zhao et al., 2023,
https://arxiv.org/abs/2304.11277). Weights, z, u, masks and optimizer moments take 1/N of the memory, for one all-gather
a step. The numbers are those of a replicated state. Only kernels of dense layers and convolutions are sharded.

The devices of a CPU are its cores, and no program there may need a sum over them. XLA lets such devices wait for each
other in threads that other work can hold up, and ends the process after a long wait (seen once in half an hour of
training beside another job). State and data then lie on the first device, and only the attack, which treats every image
by itself, is split. Two programs in flight can block each other in the same way, so there each one is waited for.

`map_microbatches` applies a per-example function in microbatches small enough for CPU caches: an attack goes through
the same images many times, and with all images of a device at once each operation finds its input outside the cache.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from rap_jax.config import require

DATA_AXIS = "data"
MODEL_AXIS = "model"


def make_mesh(devices: list[jax.Device] | None = None, *, num_model_shards: int = 1) -> Mesh:
    """All devices along one axis, `data`; with several shards along a second one, `model`, as well.

    The axes are of type Auto: under explicit types a gather or a sort of a sharded array is an error.

    Raises:
      ValueError: the devices cannot be divided so.
    """
    devices = jax.devices() if devices is None else devices
    expected = f"a divisor of the {len(devices)} devices"
    require(len(devices) % num_model_shards == 0, "num_model_shards", num_model_shards, expected)
    sizes = {DATA_AXIS: len(devices) // num_model_shards}
    if num_model_shards > 1:
        sizes[MODEL_AXIS] = num_model_shards
    shape, names = tuple(sizes.values()), tuple(sizes)
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch that cannot be split over the devices."""
    expected = f"a multiple of the {mesh.size} devices, since each batch is split over them"
    require(batch_size % mesh.size == 0, "batch_size", batch_size, expected)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def split_over_data(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the devices, all of them: also over those that share the state."""
    return NamedSharding(mesh, P(mesh.axis_names if MODEL_AXIS in mesh.axis_names else DATA_AXIS))


def has_several_cpu_devices(mesh: Mesh) -> bool:
    """Whether devices of CPUs compute together: then one program at a time may be in flight, see above."""
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def avoids_collectives(mesh: Mesh) -> bool:
    """Whether no program may make the devices wait for each other: on several devices of one CPU, see above.

    With several processes, or with a sharded state, it cannot be avoided.
    """
    return has_several_cpu_devices(mesh) and not mesh.is_multi_process and MODEL_AXIS not in mesh.axis_names


def first_device_sharding(mesh: Mesh) -> Sharding:
    """Sharding of state and data: the first device alone where collectives are avoided, elsewhere all replicate it."""
    return SingleDeviceSharding(mesh.devices.flat[0]) if avoids_collectives(mesh) else replicated(mesh)


# A row of bytes, a vector register wide or a multiple of it, stays in one piece in the memory of a TPU. Of other shapes
# its compiler puts the axis of the images last, and copies the whole split in every step to gather a batch from it.
ROW_MULTIPLE = 128


class DeviceSplit(NamedTuple):
    """A data split on the devices, by `first_device_sharding`."""

    images: jax.Array  # uint8 [N, R]: the bytes of an image, then zeros; `take_images` takes images from it
    labels: jax.Array  # int32 [N]


def put_split(images: np.ndarray, labels: np.ndarray, mesh: Mesh) -> DeviceSplit:
    """Copies a split to the devices, once; images are uint8 [N, H, W, C]. Batches are then gathered there."""
    rows = np.zeros((len(images), row_size(images.shape[1:])), images.dtype)
    rows[:, : math.prod(images.shape[1:])] = images.reshape(len(images), -1)
    return DeviceSplit(put(rows, first_device_sharding(mesh)), put(labels, first_device_sharding(mesh)))


def row_size(image_shape: tuple[int, ...]) -> int:
    """R, bytes of a row that holds an image."""
    return -(-math.prod(image_shape) // ROW_MULTIPLE) * ROW_MULTIPLE


def take_images(images: jax.Array, numbers: jax.Array | np.ndarray, image_shape: tuple[int, ...]) -> jax.Array:
    """The images of these numbers, uint8 [n, *image_shape], from rows [N, R] or from images [N, *image_shape]."""
    taken = images[numbers]
    return taken if taken.ndim > 2 else taken[:, : math.prod(image_shape)].reshape(-1, *image_shape)


def put(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """Copies an array that all processes have; each puts its part on its devices.

    `jax.device_put` would first send the whole of it around to compare.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def put_key(key: jax.Array, mesh: Mesh) -> jax.Array:
    """A random key on every device. Those of other processes take no key, but its data."""
    data = jax.device_put(jax.random.key_data(key), replicated(mesh))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))


def fetch(tree: chex.ArrayTree, mesh: Mesh) -> chex.ArrayTree:
    """NumPy arrays of all of `tree`, also where a part of it lies on devices of other processes."""
    return jax.device_get(jax.device_put(tree, replicated(mesh)) if mesh.is_multi_process else tree)


# Numbers in an array from which on it is sharded.
MIN_SHARDED_SIZE = 4096


def state_shardings(
    state: chex.ArrayTree, mesh: Mesh, *, unsharded: Sharding | None = None, min_size: int = MIN_SHARDED_SIZE
) -> Any:
    """The sharding of each array of a state: tree like `state`, whose leaves have a shape.

    An array of two axes or more is sharded along its longest axis that the `model` axis of the mesh divides, the first
    of several: of a kernel, whose last axis is often that of the lanes of a TPU, each device can then sum its shard
    alone. One that has none, and every other array, is `unsharded`, None for `first_device_sharding`.
    """
    otherwise = first_device_sharding(mesh) if unsharded is None else unsharded
    return jax.tree.map(lambda leaf: _model_sharding(leaf.shape, mesh, min_size) or otherwise, state)


def gather(tree: chex.ArrayTree, mesh: Mesh) -> chex.ArrayTree:
    """Inside of a program: the same arrays, complete on every device."""
    if MODEL_AXIS not in mesh.axis_names:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, replicated(mesh)), tree)


def shard(tree: chex.ArrayTree, mesh: Mesh) -> chex.ArrayTree:
    """Inside of a program: the same arrays, each device with its shard, as `state_shardings` has them."""
    if MODEL_AXIS not in mesh.axis_names:
        return tree
    return jax.lax.with_sharding_constraint(tree, state_shardings(tree, mesh, unsharded=replicated(mesh)))


def _model_sharding(shape: tuple[int, ...], mesh: Mesh, min_size: int) -> Sharding | None:
    number = mesh.shape.get(MODEL_AXIS, 1)
    divided = [axis for axis, length in enumerate(shape) if length % number == 0]
    if number == 1 or len(shape) < 2 or math.prod(shape) < min_size or not divided:
        return None
    chosen = max(divided, key=lambda axis: shape[axis])
    return NamedSharding(mesh, P(*(MODEL_AXIS if axis == chosen else None for axis in range(len(shape)))))


# Images that a CPU computes with at a time, at most.
MAX_MICROBATCH_SIZE = 32

Batch = TypeVar("Batch", bound=chex.ArrayTree)


def map_microbatches(function: Callable[[Batch], chex.ArrayTree], batch: Batch, mesh: Mesh) -> chex.ArrayTree:
    """`function(batch)`; on a CPU computed in equal microbatches of `MAX_MICROBATCH_SIZE` images or fewer.

    Args:
      function: takes and returns trees whose leaves have the images on their first axis, and treats each by itself.
      batch: the share of one device, leaves [N, ...].
      mesh: the devices; accelerators, with work for thousands of threads at once, get the batch undivided.
    """
    num_images, most = len(jax.tree.leaves(batch)[0]), MAX_MICROBATCH_SIZE
    size = max(size for size in range(1, most + 1) if num_images % size == 0)
    if mesh.devices.flat[0].platform != "cpu" or num_images <= most or size < most // 2:
        return function(batch)
    microbatches = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), batch)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), lax.map(function, microbatches))
