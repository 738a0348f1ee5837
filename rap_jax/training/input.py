"""The batches of a stage: from a split that lies on the devices, or from images that stay on disk.

Both give the same batches. On the devices a batch is gathered by its indices inside of the step; from disk every
process reads the images of its own devices ahead of the training.
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.mesh import (
    DeviceSplit,
    avoids_collectives,
    first_device_sharding,
    put_split,
    split_over_data,
)
from rap_jax.data import Split, epoch_order
from rap_jax.data.batches import BatchInputs
from rap_jax.data.dataset import PooledImages
from rap_jax.data.streamed import StreamedImages


class Order:
    """Which examples each batch of a stage has; every pass over the split has an order of its own.

    Args:
      key: typed PRNG key of the stage.
      num_examples: of the split.
      batch_size: examples of a batch; the rest of a pass after its last full batch is left out.
      updates_per_batch: steps in a row that see the same batch.
    """

    def __init__(self, key: jax.Array, num_examples: int, batch_size: int, updates_per_batch: int = 1):
        self._per_pass, self._size, self._updates = num_examples // batch_size, batch_size, updates_per_batch
        shuffled = lambda number: np.asarray(epoch_order(key, number, num_examples))
        self._pass = functools.lru_cache(maxsize=2)(shuffled)
        self._lock = threading.Lock()  # a pass is shuffled once, however many threads ask for it

    def batch(self, step: int) -> np.ndarray:
        """Numbers of the examples of a step's batch, int32 [batch_size]."""
        number, position = divmod(step // self._updates, self._per_pass)
        with self._lock:
            order = self._pass(number)
        return order[position * self._size : (position + 1) * self._size]


class ResidentInput:
    """The split lies on the devices."""

    def __init__(self, split: Split, mesh: Mesh):
        self.labels = split.labels
        self._split = put_split(split.images, split.labels, mesh)

    def batches(self, order: Order, steps: range) -> Iterator[BatchInputs]:
        """The inputs of each of the steps."""
        return (BatchInputs(*self._split, order.batch(step)) for step in steps)


class PooledInput:
    """The split is a part of the images on the devices, which several runs share."""

    def __init__(self, pool: DeviceSplit, rows: np.ndarray, labels: np.ndarray):
        """`rows`: places of its images in the pool, int32 [N]; `labels`: theirs."""
        self.pool, self.labels, self._rows = pool, labels, rows

    def batches(self, order: Order, steps: range) -> Iterator[BatchInputs]:
        """The inputs of each of the steps."""
        return (BatchInputs(*self.pool, self._rows[order.batch(step)]) for step in steps)


class StreamedInput:
    """The images stay on disk."""

    def __init__(self, images: StreamedImages, labels: np.ndarray, mesh: Mesh):
        self.labels = labels
        self._images = images
        self._place = first_device_sharding(mesh) if avoids_collectives(mesh) else split_over_data(mesh)

    def batches(self, order: Order, steps: range) -> Iterator[BatchInputs]:
        """The inputs of each of the steps."""
        size = len(order.batch(steps.start))
        start, stop = self._rows(size)
        read = self._images.batches(_Rows(order, steps, start, stop), stop - start)
        for step, images in zip(steps, read, strict=True):
            labels = self.labels[order.batch(step)]
            yield BatchInputs(self._put(images, size, start), self._put(labels[start:stop], size, start))

    def _rows(self, batch_size: int) -> tuple[int, int]:
        """Which rows of a batch belong to the devices of this process."""
        slices = self._place.addressable_devices_indices_map((batch_size,)).values()
        ends = [index[0].indices(batch_size)[:2] for index in slices if index is not None]
        return min(start for start, _ in ends), max(stop for _, stop in ends)

    def _put(self, rows: np.ndarray, batch_size: int, start: int) -> jax.Array:
        def share(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(batch_size)
            return rows[first - start : last - start]

        return jax.make_array_from_callback((batch_size, *rows.shape[1:]), self._place, share)


class _Rows(Sequence[int]):
    """Numbers of the examples that one process needs, step after step."""

    def __init__(self, order: Order, steps: range, start: int, stop: int):
        self._order, self._steps, self._start, self._rows = order, steps, start, stop - start

    def __len__(self) -> int:
        return len(self._steps) * self._rows

    def __getitem__(self, place: int) -> int:  # type: ignore[override]  # no slices of it are needed
        step, row = divmod(place, self._rows)
        return int(self._order.batch(self._steps[step])[self._start + row])


TrainInput = ResidentInput | PooledInput | StreamedInput


def make_input(split: Split, mesh: Mesh) -> TrainInput:
    """The input that fits where the images of the split are."""
    if isinstance(split.images, StreamedImages):
        return StreamedInput(split.images, split.labels, mesh)
    if isinstance(split.images, PooledImages):
        return pooled_inputs([split], mesh)[0]
    return ResidentInput(split, mesh)


def pooled_inputs(splits: Sequence[Split], mesh: Mesh) -> tuple[PooledInput, ...]:
    """The inputs of several runs; an array of images that they share lies on the devices once."""
    parts = [_as_pooled(split.images) for split in splits]
    pools = {id(part.pool): part.pool for part in parts}
    sizes = [len(pool) for pool in pools.values()]
    firsts = dict(zip(pools, np.cumsum([0, *sizes[:-1]]), strict=True))
    rows = [(firsts[id(part.pool)] + part.rows).astype(np.int32) for part in parts]
    labels = np.zeros(sum(sizes), np.int32)
    for places, split in zip(rows, splits, strict=True):
        labels[places] = split.labels
    images = next(iter(pools.values())) if len(pools) == 1 else np.concatenate(list(pools.values()))
    pool = put_split(images, labels, mesh)
    return tuple(PooledInput(pool, places, split.labels) for places, split in zip(rows, splits, strict=True))


def _as_pooled(images: Any) -> PooledImages:
    return images if isinstance(images, PooledImages) else PooledImages(images, np.arange(len(images)))
