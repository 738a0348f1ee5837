"""The PyTorch side of `benchmarks.user_networks`: a process that attacks on command.

python -m benchmarks.pytorch.user_networks_worker CASE ARRAYS.npz
"""

import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the name that PyTorch's own code has

from benchmarks.machine import num_cores
from benchmarks.pytorch.networks import ResNet18
from benchmarks.pytorch.official_attacks import to_labels, to_torch
from benchmarks.pytorch.official_autoattack import run_autoattack
from benchmarks.pytorch.trades_network import trades_network
from benchmarks.worker import Answer, clocked, serve

NUM_STEPS = 5


def network_of(case: str, state: dict[str, np.ndarray]) -> nn.Module:
    """The network of the case in evaluation mode."""
    if case == "trades":
        return trades_network(state)
    network = ResNet18(int(case.rpartition("_")[2]) // 4)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=False)
    return network.eval().requires_grad_(False)


def run_pgd(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    """PGD as users write it: a random start, then steps of a quarter of the radius."""
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    adversarial = low + (high - low) * torch.rand_like(images)
    for _ in range(NUM_STEPS):
        adversarial.requires_grad_()
        loss = F.cross_entropy(network(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        moved = adversarial.detach() + epsilon / 4 * gradient.sign()
        adversarial = torch.minimum(torch.maximum(moved, low), high)
    return adversarial


def main(case: str, path: str) -> None:
    """Answers the requests of `benchmarks.user_networks`."""
    torch.set_num_threads(num_cores())
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    state = {name.removeprefix("state/"): value for name, value in arrays.items() if name.startswith("state/")}
    network, epsilon = network_of(case, state), float(arrays["epsilon"])
    images, labels = arrays["images"], arrays["labels"]

    def attack(count: int) -> Answer:
        batch, right = to_torch(images[:count]), to_labels(labels[:count])
        return clocked(lambda: run_pgd(network, batch, right, epsilon))

    def auto_attack(count: int) -> Answer:
        found = []
        run = lambda: run_autoattack(
            network, images[:count], labels[:count], "standard", norm="linf", epsilon=epsilon, seed=0
        )
        times = clocked(lambda: found.append(run()))
        return times | {"robust": f"{found[0].mean():.1%}"}

    serve({"pgd": attack, "auto_attack": auto_attack})


if __name__ == "__main__":
    main(*sys.argv[1:])
