"""Images that stay on disk, for data that a device or a host cannot hold: read by number when a batch needs them.

The records are those of the prepared copy (array_record), which can be read in any order. Grain reads ahead of the
training in several threads and keeps the order that it is given.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

_NUM_THREADS = 8
_IMAGES_AHEAD = 512
# What is read at once where all of a split is needed.
CHUNK = 4096


class Records(Protocol):
    """Examples by number. `__getitems__` returns a mapping with `image` and `label` for each number."""

    def __len__(self) -> int: ...

    def __getitems__(self, numbers: Sequence[int]) -> Sequence[Any]: ...


class StreamedImages:
    """Takes the place of an array uint8 [N, H, W, C] in a `Split`: it can be measured and chosen from, and read."""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, records: Records, numbers: np.ndarray, image_shape: tuple[int, ...]):
        """Of all records of a split on disk those with the `numbers` [N]; `image_shape` is [H, W, C]."""
        self._records, self._numbers = records, numbers
        self.shape = (len(numbers), *image_shape)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, chosen: np.ndarray) -> "StreamedImages":
        """Those that a mask or an array of numbers names; nothing is read."""
        return StreamedImages(self._records, self._numbers[chosen], self.shape[1:])

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The images of these numbers, uint8 [M, H, W, C]."""
        examples = self._records.__getitems__([int(number) for number in self._numbers[numbers]])
        return np.stack([example["image"] for example in examples])

    def chunks(self) -> Iterator[np.ndarray]:
        """All images, in order, a part at a time."""
        for start in range(0, len(self), CHUNK):
            yield self.read(np.arange(start, min(start + CHUNK, len(self))))

    def read_all(self) -> np.ndarray:
        """All images, uint8 [N, H, W, C]."""
        return np.concatenate(list(self.chunks()))

    def batches(self, order: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
        """Images in a given order, uint8 [batch_size, H, W, C] at a time, read ahead.

        Args:
          order: number of each image, [M]; asked for one by one, from several threads.
          batch_size: divides M.

        Raises:
          ValueError: Grain is not installed.
        """
        try:
            import grain
        except ImportError as error:
            raise ValueError("stream_data needs Grain: pip install 'rap-jax[stream]'.") from error
        ahead = grain.ReadOptions(num_threads=_NUM_THREADS, prefetch_buffer_size=max(_IMAGES_AHEAD, 2 * batch_size))
        images = grain.MapDataset.source(_InOrder(self, order)).to_iter_dataset(ahead)
        yield from images.batch(batch_size)


class _InOrder:
    """What Grain reads from: image after image in an order."""

    def __init__(self, images: StreamedImages, order: Sequence[int]):
        self._images, self._order = images, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> np.ndarray:
        return self._images.read(np.array([self._order[place]]))[0]
