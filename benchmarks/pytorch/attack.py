"""PGD as the authors' code has it: L-infinity, one random start, the network in whatever mode it is in."""

from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812

from rap_jax.config import AttackConfig


def pgd(
    network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, labels: torch.Tensor, attack: AttackConfig
) -> torch.Tensor:
    """Adversarial images, shape of `images` [N, C, H, W], inside the ball and [0, 1].

    The gradient is taken with respect to the images alone: PyTorch then computes none of the weights.
    """
    low, high = (images - attack.epsilon).clamp_(0, 1), (images + attack.epsilon).clamp_(0, 1)
    adversarial = images + torch.empty_like(images).uniform_(-attack.epsilon, attack.epsilon)
    for _ in range(attack.num_steps):
        adversarial.requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(network(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        # Ball and box at once, in place: less work than the authors' four passes, with the same result.
        adversarial = torch.add(adversarial.detach(), gradient.sign_(), alpha=attack.step_size)
        adversarial = torch.minimum(torch.maximum(adversarial, low), high)
    return adversarial
