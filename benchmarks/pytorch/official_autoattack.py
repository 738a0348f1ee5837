"""The official AutoAttack under a seed of its own, whole or a single part."""

import numpy as np
import torch
from pyautoattack import AutoAttack
from torch import nn

from benchmarks.pytorch.networks import LeNet
from benchmarks.pytorch.official_attacks import NORMS, logits_of, to_labels, to_numpy, to_torch

STANDARD = "standard"


def run_autoattack(
    network: nn.Module, images: np.ndarray, labels: np.ndarray, part: str, *, norm: str, epsilon: float, seed: int
) -> np.ndarray:
    """Runs the version `standard`, or one part with its settings there, in batches of 250, its default.

    Args:
      network: in evaluation mode.
      images: [N, H, W, C] in [0, 1].
      labels: int [N].
      part: `standard`, or its name such as `apgd-ce`.
      norm: `linf` or `l2`.
      epsilon, seed: of the attack.

    Returns:
      Which examples are right, and right when attacked, by a prediction of the images that it returns: bool [N].
    """
    attack = AutoAttack(network, norm=NORMS[norm], eps=epsilon, seed=seed, version=STANDARD)
    if part != STANDARD:
        attack.attacks_to_run = [part]
    adversarial, _ = attack.run_standard_evaluation(to_torch(images), to_labels(labels))
    return logits_of(network, to_numpy(adversarial)).argmax(1) == labels


def lenet_of(state: dict[str, np.ndarray]) -> LeNet:
    """The LeNet with weights by the names of PyTorch, in evaluation mode; it takes gradients of its images alone."""
    network = LeNet(len(state["conv1.bias"]) // 2)
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return network.eval().requires_grad_(False)
