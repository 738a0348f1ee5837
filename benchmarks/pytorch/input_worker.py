"""The PyTorch side of `benchmarks.input`: an epoch of a DataLoader on command.

python -m benchmarks.pytorch.input_worker HEIGHT WIDTH CHANNELS NUM_IMAGES BATCH_SIZE CROP_PADDING
"""

import random
import sys

import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.machine import num_cores
from benchmarks.worker import clocked, serve


class Augmented(Dataset[tuple[torch.Tensor, ...]]):
    """Each image cropped out of its padded self at random, and half of them mirrored, when it is read."""

    def __init__(self, data: TensorDataset, crop_padding: int):
        self.data, self.crop_padding = data, crop_padding

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        image, label = self.data[index]
        height, width = image.shape[1:]
        top, left = (random.randint(0, 2 * self.crop_padding) for _ in range(2))
        image = F.pad(image, [self.crop_padding] * 4)[:, top : top + height, left : left + width]
        return (image.flip(2) if random.random() < 0.5 else image), label


def main(height: int, width: int, channels: int, num_images: int, batch_size: int, crop_padding: int) -> None:
    """Answers the requests of `benchmarks.input`."""
    torch.set_num_threads(num_cores())
    images = torch.randint(0, 256, (num_images, channels, height, width), dtype=torch.uint8)
    data = TensorDataset(images, torch.randint(0, 10, (num_images,)))
    changed: Dataset[tuple[torch.Tensor, ...]] = Augmented(data, crop_padding) if crop_padding else data
    loader = DataLoader(changed, batch_size, shuffle=True, drop_last=True)

    def epoch() -> None:
        for batch, _ in loader:
            batch.float().div_(255)

    serve({"epoch": lambda: clocked(epoch)})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
