"""One training step as the authors' code has it: attack, natural and adversarial forward pass, backward, update."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pytorch.attack import pgd
from rap_jax.config import AttackConfig

Penalty = Callable[[], torch.Tensor]


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    attack: AttackConfig,
    *,
    natural_pass: bool = True,
    penalty: Penalty | None = None,
    masks: Mapping[str, torch.Tensor] | None = None,
) -> float:
    """Trains on one batch, the attack in training mode, and returns the loss on the adversarial images.

    Args:
      natural_pass: the authors look at the clean images as well. Here without recording it for a gradient that nobody
        takes, which is quicker than theirs.
      penalty: what ADMM adds to the loss.
      masks: 0 where a weight is pruned, by name of the parameter; its gradient is then 0.
    """
    network.train()
    adversarial = pgd(network, images, labels, attack)
    if natural_pass:
        with torch.no_grad():
            F.cross_entropy(network(images), labels)
    loss = F.cross_entropy(network(adversarial), labels)
    optimizer.zero_grad()
    (loss if penalty is None else loss + penalty()).backward()
    for name, mask in (masks or {}).items():
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        gradient.mul_(mask)
    optimizer.step()
    return loss.item()
