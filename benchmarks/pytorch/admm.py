"""ADMM pruning of filters as the authors' code has it: z, u and a penalty in the loss; then masks for the retrain.

Theirs differentiates through u as well; here z and u are constants, which is less work.
"""

from collections.abc import Mapping

import torch
from torch import nn


class Admm:
    """z and u of the weights that are pruned, by name of the parameter.

    Args:
      sparsity: share of filters to remove, by name of the weight such as `conv1.weight`.
      rho: penalty, multiplied by `growth` at each dual step.
    """

    def __init__(self, network: nn.Module, sparsity: Mapping[str, float], rho: float, growth: float):
        self.weights = {name: network.get_parameter(name) for name in sparsity}
        self.sparsity, self.rho, self.growth = sparsity, rho, growth
        self.z = {name: weight.detach() * filter_mask(weight, sparsity[name]) for name, weight in self.weights.items()}
        self.u = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}

    def penalty(self) -> torch.Tensor:
        """rho / 2 times the sum of ||w - z + u||^2."""
        terms = [(w - self.z[name] + self.u[name]).square().sum() for name, w in self.weights.items()]
        return self.rho / 2 * torch.stack(terms).sum()

    @torch.no_grad()
    def dual_step(self) -> None:
        """z = the projection of w + u, u = u + w - z, and a larger rho."""
        self.rho *= self.growth
        for name, weight in self.weights.items():
            shifted = weight + self.u[name]
            self.z[name] = shifted * filter_mask(shifted, self.sparsity[name])
            self.u[name] = shifted - self.z[name]


@torch.no_grad()
def filter_mask(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    """1 for the filters of largest norm, 0 for the share `sparsity` of them, float, shape of `weight`."""
    norms = weight.flatten(1).square().sum(1)
    kept = norms.topk(len(norms) - round(sparsity * len(norms))).indices
    mask = torch.zeros_like(norms).index_fill_(0, kept, 1.0)
    return mask.reshape(-1, *[1] * (weight.ndim - 1)).expand_as(weight).contiguous()


@torch.no_grad()
def cut(network: nn.Module, sparsity: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Removes filters with their biases in place and returns the masks of both, by name of the parameter."""
    masks = {}
    for name, share in sparsity.items():
        masks[name] = filter_mask(network.get_parameter(name), share)
        masks[name.replace("weight", "bias")] = masks[name].flatten(1)[:, 0].contiguous()
    for name, mask in masks.items():
        network.get_parameter(name).mul_(mask)
    return masks
