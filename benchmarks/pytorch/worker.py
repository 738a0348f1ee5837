"""The PyTorch side of `benchmarks.train_step`: a process that takes training steps on command.

python -m benchmarks.pytorch.worker ROW channels_first|channels_last
"""

import sys

import torch

from benchmarks.machine import num_cores
from benchmarks.pytorch.networks import create_network
from benchmarks.pytorch.step import train_step
from benchmarks.rows import ROWS, Row
from benchmarks.worker import Answer, clocked, memory, serve

LAYOUTS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}
_GEMM_SIZE = 2048


class StepWorker:
    """A network, its optimizer and one batch of noise."""

    def __init__(self, row: Row, layout: str):
        torch.manual_seed(0)
        self.row = row
        self.network = create_network(row.model, row.width).to(memory_format=LAYOUTS[layout])
        if row.optimizer == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        else:
            self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        height, width, channels = row.input_shape
        images = torch.rand(row.batch_size, channels, height, width)
        self.images = images.contiguous(memory_format=LAYOUTS[layout])
        self.labels = torch.randint(0, 10, (row.batch_size,))

    def step(self, natural_pass: bool = True) -> float:
        """One training step."""
        return train_step(
            self.network, self.optimizer, self.images, self.labels, self.row.attack, natural_pass=natural_pass
        )


def _gemm(count: int) -> Answer:
    left, right = (torch.rand(_GEMM_SIZE, _GEMM_SIZE) for _ in range(2))
    _ = left @ right
    return clocked(lambda: left @ right, count)


def main(row: str, layout: str) -> None:
    """Answers the requests of `benchmarks.train_step`."""
    torch.set_num_threads(num_cores())
    at_start = memory()
    worker = StepWorker(ROWS[row], layout)
    serve(
        {
            "steps": lambda count: clocked(worker.step, count),
            "steps_without_natural_pass": lambda count: clocked(lambda: worker.step(natural_pass=False), count),
            "gemm": _gemm,
            "memory_at_start": lambda: at_start,
            "memory": memory,
        }
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
