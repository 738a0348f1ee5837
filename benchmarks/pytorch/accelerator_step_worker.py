"""The PyTorch side of the parts `steps` and `memory` of `benchmarks.accelerator`: training steps on the card.

python -m benchmarks.pytorch.accelerator_step_worker ROW_AS_JSON WAY, see `benchmarks.accelerators.steps.PYTORCH_WAYS`

The step of `benchmarks.pytorch.step` as rap_jax has it: the attack sees the network in evaluation mode and takes no
gradient of the weights, there is no pass on clean images, and no step waits for the card.
"""

import contextlib
import json
import sys
from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812

from benchmarks.accelerators.process import serve_object
from benchmarks.pytorch.attack import pgd
from benchmarks.pytorch.networks import create_network
from benchmarks.rows import Row
from benchmarks.worker import Answer, clocked


def use_card(products: str = "default") -> str:
    """Device of the rows. Float32 is multiplied in TF32 by default, as JAX does on the same card; cuDNN chooses."""
    tf32 = products == "default"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    return "cuda" if torch.cuda.is_available() else "cpu"


class Steps:
    """Training steps of one row, in one of the ways of `benchmarks.accelerators.steps`."""

    def __init__(self, row: Row, way: str):
        torch.manual_seed(0)
        self._device, self._row, self._is_narrow = use_card(), row, "bf16" in way
        layout = torch.channels_last if way.endswith("channels_last") else torch.contiguous_format
        self._network = create_network(row.model, row.width).to(self._device).to(memory_format=layout)
        self._forward = self._compiled() if way.startswith("compiled") else self._network
        if row.optimizer == "adam":
            self._optimizer: torch.optim.Optimizer = torch.optim.Adam(self._network.parameters(), lr=1e-3)
        else:
            self._optimizer = torch.optim.SGD(self._network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        height, width, channels = row.input_shape
        images = torch.rand(row.batch_size, channels, height, width, device=self._device)
        self._images = images.contiguous(memory_format=layout)
        self._labels = torch.randint(0, 10, (row.batch_size,), device=self._device)

    def steps(self, count: int) -> Answer:
        """Seconds of a step, waited for at the end of all."""
        answer = clocked(lambda: self._run(count))
        return answer | {"seconds": answer["seconds"] / count}

    def memory(self) -> Answer:
        """The most memory of the card that tensors have taken in this process, in MB; None without a card."""
        has_card = self._device == "cuda"
        return {"megabytes": torch.cuda.max_memory_allocated() / 1e6 if has_card else None}

    def _compiled(self) -> Callable[[torch.Tensor], torch.Tensor]:
        # Without a card the programs are traced and not compiled: that the way works is all that is asked there.
        return torch.compile(self._network, backend="inductor" if self._device == "cuda" else "aot_eager")

    def _run(self, count: int) -> None:
        for _ in range(count):
            self._step()
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _step(self) -> None:
        self._network.eval().requires_grad_(False)
        adversarial = pgd(self._logits, self._images, self._labels, self._row.attack)
        self._network.train().requires_grad_(True)
        loss = F.cross_entropy(self._logits(adversarial.detach()), self._labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        narrow = torch.autocast(self._device, torch.bfloat16) if self._is_narrow else contextlib.nullcontext()
        with narrow:
            return self._forward(images).float()


def main(row: str, way: str) -> None:
    """Answers the requests of `steps` and `memory`."""
    serve_object(lambda: Steps(Row(**json.loads(row)), way), "steps", "memory")


if __name__ == "__main__":
    main(*sys.argv[1:])
