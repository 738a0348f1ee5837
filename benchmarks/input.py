"""An epoch of input against PyTorch's DataLoader: `python -m benchmarks.input`.

Order, gathering and augmentation of noise in the shapes of MNIST (plain) and CIFAR-10 (crop and mirror), batch by batch
and without training. PyTorch: a shuffling DataLoader of TensorDataset in its own process, crop and mirror image by
image as torchvision does. Needs the extra `bench`.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.records import Column, Plot, markdown_table, write_records
from benchmarks.turns import in_turn
from benchmarks.worker import Answer, Worker, clocked
from rap_jax._runtime.mesh import make_mesh, put_split
from rap_jax.config import AugmentConfig, TrainConfig
from rap_jax.data import epoch_order
from rap_jax.data.batches import BatchInputs, make_batch

# Shape of an image, how many of them, batch, black pixels around an image from which it is cropped (0: no change).
CASES: dict[str, tuple[tuple[int, int, int], int, int, int]] = {
    "mnist": ((28, 28, 1), 54_000, 64, 0),
    "cifar10": ((32, 32, 3), 45_000, 128, 4),
}
ABOUT = """\
Images per second of an epoch of input (order, gathering, augmentation, [0, 1]) without training, rap_jax on one device
against PyTorch's DataLoader, in turn; median of the rounds."""
COLUMNS = (
    Column("pytorch_images_per_second", "PyTorch images/s", ",.0f"),
    Column("rap_jax_images_per_second", "rap_jax images/s", ",.0f"),
    Column("ratio", "ratio", ".2f"),
)


def make_epoch(name: str) -> Callable[[], None]:
    """A function that goes through one epoch, and waits for each batch as training does."""
    shape, num_images, batch_size, crop_padding = CASES[name]
    augment = AugmentConfig(crop_padding, horizontal_flip=crop_padding > 0)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (num_images, *shape), np.uint8)
    split = put_split(images, generator.integers(0, 10, num_images, np.int32), make_mesh(jax.devices()[:1]))
    config = TrainConfig(None, augment=augment)
    batch_of = jax.jit(
        lambda key, inputs: make_batch(key, inputs, config, num_classes=10, image_shape=images.shape[1:])
    )

    def epoch() -> None:
        order = np.asarray(epoch_order(jax.random.key(0), 0, num_images))
        for start in range(0, num_images - batch_size + 1, batch_size):
            inputs = BatchInputs(split.images, split.labels, order[start : start + batch_size])
            batch = batch_of(jax.random.key(start), inputs)
            jax.block_until_ready(batch)

    return epoch


def measure(name: str, *, rounds: int) -> dict[str, Any]:
    """Times one case."""
    shape, num_images, batch_size, crop_padding = CASES[name]
    epoch = make_epoch(name)
    epoch()
    worker = Worker("benchmarks.pytorch.input_worker", *map(str, (*shape, num_images, batch_size, crop_padding)))
    ways: dict[str, Callable[[], Answer]] = {
        "rap_jax": lambda: clocked(epoch),
        "pytorch": lambda: worker.ask("epoch"),
    }
    times = in_turn(ways, rounds=rounds)
    worker.close()
    speeds = {f"{side}_images_per_second": num_images / found.median for side, found in times.items()}
    return speeds | {"ratio": times["pytorch"].median / times["rap_jax"].median}


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CASES), help="one data set")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(CASES)
    rows = {name: measure(name, rounds=arguments.rounds) for name in names}
    plot = Plot("ratio", "images per second of input, rap_jax over PyTorch", level=1.0)
    write_records("input", rows, about=ABOUT, columns=COLUMNS, order=list(CASES), plot=plot)
    print(markdown_table(rows, COLUMNS))
    print(f"ratio {rows[names[-1]]['ratio']:.2f}")


if __name__ == "__main__":
    main()
