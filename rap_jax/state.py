"""What training carries from step to step, and how it lies on the devices.

One mesh axis, `data`: the state is replicated, a batch is split over the devices. That is all the sharding there is;
XLA inserts the sums over devices, because losses and BatchNorm statistics are means over the global batch.

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

DATA_AXIS = "data"


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
        Kept(kept.params, kept.batch_stats, score=jnp.full((), -1.0), step=jnp.zeros((), jnp.int32)),
    )


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """All devices along one axis, `data`.

    The axis is of type Auto: under explicit types a gather or a sort of a sharded array is an error.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def split_over_data(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the devices."""
    return NamedSharding(mesh, P(DATA_AXIS))


def avoids_collectives(mesh: Mesh) -> bool:
    """Whether no program may make the devices wait for each other: on several devices of a CPU, see above."""
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def home(mesh: Mesh) -> Sharding:
    """Where state and data lie: on every device; on the first one alone where collectives are avoided."""
    return SingleDeviceSharding(mesh.devices.flat[0]) if avoids_collectives(mesh) else replicated(mesh)


class DeviceSplit(NamedTuple):
    """A data split at `home` of the devices. Attributes: images: uint8 [N, H, W, C]; labels: int32 [N]."""

    images: jax.Array
    labels: jax.Array


def put_split(images: np.ndarray, labels: np.ndarray, mesh: Mesh) -> DeviceSplit:
    """Copies a split to `home`, once; batches are then gathered on the device."""
    return DeviceSplit(*jax.device_put((images, labels), home(mesh)))
