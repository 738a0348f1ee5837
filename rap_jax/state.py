"""What training carries from step to step, and how it lies on the devices.

One mesh axis, `data`: the state is replicated, a batch is split over the devices, and XLA inserts the sums over
devices, because losses and BatchNorm statistics are means over the global batch. With a second axis, `model`, large
arrays of the state lie in pieces (see `shards`).

Several devices of a CPU are its cores, and there no program may need such a sum: XLA lets the devices wait for each
other in threads that other work can hold up, and ends the process when one has waited too long (seen once in half an
hour of training beside another job). State and data then lie on the first device, and only what treats every image by
itself is split: the attack.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from rap_jax.config import require

DATA_AXIS = "data"
MODEL_AXIS = "model"


class Weights(NamedTuple):
    """A model's arrays, as handed from stage to stage."""

    params: chex.ArrayTree
    batch_stats: chex.ArrayTree


class TrainState(NamedTuple):
    """State of one stage. The random key is not in it: step keys are folded from the run's seed and `step`.

    Attributes:
      step: updates done in this stage, int32.
      params: weights.
      batch_stats: BatchNorm statistics, `{}` for a network without.
      opt_state: state of the optimizer chain, with z and u in the ADMM stage and the masks in the retrain.
      perturbation: in free training what the images of a batch are moved by, float32 [N, H, W, C]; () in any other.
    """

    step: jax.Array
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    opt_state: optax.OptState
    perturbation: chex.ArrayTree = ()


class Kept(NamedTuple):
    """The best model on validation so far. Attributes: params, batch_stats; score, step: of the choice."""

    params: chex.ArrayTree
    batch_stats: chex.ArrayTree
    score: jax.Array
    step: jax.Array


class StageState(NamedTuple):
    """What a checkpoint holds: the state to go on from, and the model kept so far."""

    train: TrainState
    kept: Kept


def init_stage_state(
    start: Weights, tx: optax.GradientTransformationExtraArgs, perturbation: chex.ArrayTree = ()
) -> StageState:
    """Fresh state of a stage that begins at `start`; nothing is kept yet (score -1).

    All leaves are copies: a step donates its state, and that must not reach the caller's arrays.
    """
    first, kept = (jax.tree.map(jnp.copy, start) for _ in range(2))
    return StageState(
        TrainState(jnp.zeros((), jnp.int32), first.params, first.batch_stats, tx.init(start.params), perturbation),
        Kept(kept.params, kept.batch_stats, score=jnp.full((), -1.0, jnp.float32), step=jnp.zeros((), jnp.int32)),
    )


def make_mesh(devices: list[jax.Device] | None = None, *, num_model_shards: int = 1) -> Mesh:
    """All devices along one axis, `data`; with several shards along a second one, `model`, as well (see `shards`).

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


def avoids_collectives(mesh: Mesh) -> bool:
    """Whether no program may make the devices wait for each other: on several devices of one CPU, see above.

    With several processes, or with state in pieces, it cannot be avoided.
    """
    on_one_cpu = mesh.devices.flat[0].platform == "cpu" and not mesh.is_multi_process
    return mesh.size > 1 and on_one_cpu and MODEL_AXIS not in mesh.axis_names


def home(mesh: Mesh) -> Sharding:
    """Where state and data lie: on every device; on the first one alone where collectives are avoided."""
    return SingleDeviceSharding(mesh.devices.flat[0]) if avoids_collectives(mesh) else replicated(mesh)


class DeviceSplit(NamedTuple):
    """A data split at `home` of the devices. Attributes: images: uint8 [N, H, W, C]; labels: int32 [N]."""

    images: jax.Array
    labels: jax.Array


def put_split(images: np.ndarray, labels: np.ndarray, mesh: Mesh) -> DeviceSplit:
    """Copies a split to `home`, once; batches are then gathered on the device."""
    return DeviceSplit(put(images, home(mesh)), put(labels, home(mesh)))


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
