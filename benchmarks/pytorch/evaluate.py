"""Natural and robust accuracy, as the authors' code counts them: every image is attacked, in every restart."""

import torch
from torch import nn

from benchmarks.pytorch.attack import pgd
from rap_jax.config import AttackConfig


def evaluate(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, attack: AttackConfig, *, batch_size: int
) -> tuple[float, float]:
    """Share of images [N, C, H, W] that are right, clean, and clean and attacked in all restarts; evaluation mode."""
    network.eval()
    natural, robust = 0, 0
    for start in range(0, len(labels), batch_size):
        x, y = images[start : start + batch_size], labels[start : start + batch_size]
        with torch.no_grad():
            right = network(x).argmax(1) == y
        natural += int(right.sum())
        for _ in range(attack.num_restarts):
            adversarial = pgd(network, x, y, attack)
            with torch.no_grad():
                right &= network(adversarial).argmax(1) == y
        robust += int(right.sum())
    return natural / len(labels), robust / len(labels)
