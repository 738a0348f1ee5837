"""A training step of several networks that differ by their seed.

    step = make_seeds_step(functions, pool, num_seeds, mesh)
    states, keys = step.join(states), step.join(keys)
    states, metrics = step.advance(states, indices, keys, False)
    step.split(states)[0], step.split_metrics(jax.device_get(metrics))[0]

On accelerators the states are stacked and `jax.vmap` makes one program of the steps. Several devices share the seeds; a
batch is not split. A network is then equal to one that trains alone up to rounding.

On CPUs each network has the program of a run alone on one device, so every bit is the same, and each device has its
share of the networks. One program of several would round otherwise: with `jax.lax.map`, as with an unrolled loop, the
weights of a LeNet's ADMM stage differed in the last place, since XLA fused other operations.

No program makes a device wait for another one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from rap_jax._runtime.mesh import DeviceSplit, make_mesh, put, replicated, split_over_data
from rap_jax.data.batches import BatchInputs
from rap_jax.training.sharded_step import step_as_program
from rap_jax.training.state import StepKeys, TrainState
from rap_jax.training.step import StepFunctions, StepMetrics

Joined = Any  # trees of all seeds: stacked, or a list


class SeedsStep(NamedTuple):
    """A step, and how the trees of the seeds are put together for it."""

    join: Callable[[Sequence[Any]], Joined]  # a tree for each seed, such as states or keys
    # (states, indices int32 [num_seeds, batch_size], keys, dual_step) -> (states, metrics); the states are donated.
    advance: Callable[[Joined, np.ndarray, Joined, bool], tuple[Joined, Joined]]
    split: Callable[[Joined], list[Any]]  # the states of each seed, on the first device
    split_metrics: Callable[[Joined], list[StepMetrics]]  # likewise, of metrics on the host


def make_seeds_step(
    functions: StepFunctions, pool: DeviceSplit, num_seeds: int, mesh: Mesh, *, stacked: bool | None = None
) -> SeedsStep:
    """Builds the step of `num_seeds` networks.

    Args:
      functions: of one network; its masks are in the state.
      pool: images and labels that the indices of all seeds count in.
      mesh: the devices, which share the networks.
      stacked: one program for all networks of a device; None for accelerators alone.
    """
    stacked = mesh.devices.flat[0].platform != "cpu" if stacked is None else stacked
    return (_stacked if stacked else _in_turn)(functions, pool, num_seeds, mesh)


def _in_turn(functions: StepFunctions, pool: DeviceSplit, num_seeds: int, mesh: Mesh) -> SeedsStep:
    """Each network by the program of a run alone, dispatched to its device."""
    meshes = [make_mesh([device]) for device in list(mesh.devices.flat)[:num_seeds]]
    programs = [step_as_program(functions, own) for own in meshes]
    pools: list[DeviceSplit] = [jax.device_put(pool, replicated(own)) for own in meshes]
    place: Callable[[int], int] = lambda seed: seed % len(meshes)

    def join(trees: Sequence[Any]) -> list[Any]:
        return [jax.device_put(tree, replicated(meshes[place(seed)])) for seed, tree in enumerate(trees)]

    def advance(
        states: list[TrainState], indices: np.ndarray, keys: list[StepKeys], dual_step: bool
    ) -> tuple[list[TrainState], list[StepMetrics]]:
        steps = []
        for seed, (state, rows, key) in enumerate(zip(states, indices, keys, strict=True)):
            own = place(seed)
            inputs = BatchInputs(pools[own].images, pools[own].labels, put(rows, split_over_data(meshes[own])))
            steps.append(programs[own](state, inputs, key, dual_step))
        return [state for state, _ in steps], [metrics for _, metrics in steps]

    first = replicated(meshes[0])
    return SeedsStep(join, advance, lambda states: [jax.device_put(state, first) for state in states], list)


def _stacked(functions: StepFunctions, pool: DeviceSplit, num_seeds: int, mesh: Mesh) -> SeedsStep:
    """One program: on each device the networks of its share by `jax.vmap`, the last one again where there are gaps."""
    per_device = -(-num_seeds // mesh.size)
    num_devices = -(-num_seeds // per_device)
    own = make_mesh(list(mesh.devices.flat)[:num_devices])
    num_gaps = per_device * num_devices - num_seeds
    share, everywhere = split_over_data(own), replicated(own)
    images: Any = jax.device_put(pool, everywhere)
    fill: Callable[[Sequence[Any]], list[Any]] = lambda items: [*items, *[items[-1]] * num_gaps]

    def on_device(
        states: TrainState, images: DeviceSplit, indices: jax.Array, keys: StepKeys, dual_step: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        def one(state: TrainState, rows: jax.Array, key: StepKeys) -> tuple[TrainState, StepMetrics]:
            return functions.step(state, BatchInputs(images.images, images.labels, rows), key, dual_step)

        return jax.vmap(one)(states, indices, keys)

    each, whole = share.spec, everywhere.spec
    specs = (each, whole, each, each, whole)
    program = jax.jit(
        jax.shard_map(on_device, mesh=own, in_specs=specs, out_specs=each, check_vma=False), donate_argnums=0
    )

    def join(trees: Sequence[Any]) -> Any:
        return jax.device_put(jax.tree.map(lambda *leaves: jnp.stack(leaves), *fill(trees)), share)

    def advance(states: Any, indices: np.ndarray, keys: Any, dual_step: bool) -> tuple[Any, Any]:
        return program(states, images, put(np.stack(fill(list(indices))), share), keys, dual_step)

    first = replicated(make_mesh([mesh.devices.flat[0]]))
    split: Callable[[Any], list[Any]] = lambda states: _unstack(states, first)[:num_seeds]
    return SeedsStep(join, advance, split, lambda metrics: [_tree_at(metrics, seed) for seed in range(num_seeds)])


def _unstack(tree: chex.ArrayTree, place: Sharding) -> list[Any]:
    """The trees that were stacked, at `place`; each device takes its own apart, so that none waits for another."""
    leaves, structure = jax.tree.flatten(tree)
    shards = [sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0) for leaf in leaves]
    by_device = zip(*shards, strict=True)
    stacks = [jax.tree.unflatten(structure, [shard.data for shard in of_device]) for of_device in by_device]
    return [jax.device_put(one, place) for stack in stacks for one in _take_apart(stack)]


@jax.jit
def _take_apart(stack: chex.ArrayTree) -> list[Any]:
    num_trees = len(jax.tree.leaves(stack)[0])
    return [_tree_at(stack, place) for place in range(num_trees)]


def _tree_at(stack: chex.ArrayTree, place: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], stack)
