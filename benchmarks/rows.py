"""The training steps that are timed: network, batch and attack, and how much arithmetic they are."""

import dataclasses

from benchmarks.flops import forward_flops
from rap_jax.config import AttackConfig

LAYOUTS = ("channels_first", "channels_last")

_INPUT_SHAPES = {"lenet_mnist": (28, 28, 1), "resnet18": (32, 32, 3)}
_RADII = {"lenet_mnist": (0.3, 0.01), "resnet18": (8 / 255, 2 / 255)}  # epsilon and step size of the paper


@dataclasses.dataclass(frozen=True)
class Row:
    """One training step: PGD of `num_steps` steps on `batch_size` images, then the update."""

    name: str
    model: str
    width: int
    batch_size: int
    num_steps: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one image."""
        return _INPUT_SHAPES[self.model]

    @property
    def attack(self) -> AttackConfig:
        """L-infinity PGD with the paper's radius, one random start."""
        epsilon, step_size = _RADII[self.model]
        return AttackConfig(epsilon=epsilon, step_size=step_size, num_steps=self.num_steps)

    @property
    def optimizer(self) -> str:
        """As in the authors' pretraining: Adam on MNIST, SGD with momentum on CIFAR-10."""
        return "adam" if self.model == "lenet_mnist" else "sgd"

    @property
    def layouts(self) -> tuple[str, ...]:
        """PyTorch's memory layouts that the authors' code can run in, of which the better one is compared with.

        Their LeNet flattens by `view`, which refuses channels_last; it is timed all the same, and shown beside.
        """
        return ("channels_first",) if self.model == "lenet_mnist" else LAYOUTS

    @property
    def flops(self) -> int:
        """Floating-point operations of one step: (2 K + 1 + 3) forward passes of the batch.

        An attack step is a forward and a backward pass to the images (2), the authors' step has a natural forward pass
        (1), and the update is a forward pass and two backward ones, to the hidden layers and to the weights (3). The
        same count for both sides, whatever they leave out or do twice.
        """
        return (2 * self.num_steps + 4) * self.batch_size * forward_flops(self.model, self.width)


ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("lenet_w1", "lenet_mnist", 1, 64, 40),
        Row("lenet_w4", "lenet_mnist", 4, 64, 40),
        Row("lenet_w8", "lenet_mnist", 8, 64, 40),
        Row("lenet_w16", "lenet_mnist", 16, 64, 40),
        Row("resnet18_w1", "resnet18", 1, 128, 10),
        Row("resnet18_w4", "resnet18", 4, 128, 10),
        Row("resnet18_w16", "resnet18", 16, 128, 2),
    )
}
