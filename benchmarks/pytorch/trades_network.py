"""The network of TRADES for MNIST, with the names of its published weights.

Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", 2019,
https://arxiv.org/abs/1901.08573.
"""

from collections import OrderedDict

import numpy as np
import torch
from torch import nn


class TradesNetwork(nn.Module):
    """Convolutions 3x3 without padding: 32, 32, pool, 64, 64, pool; dense 200, 200, 10; images 28x28x1 in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        pool, relu = nn.MaxPool2d(2, 2), nn.ReLU()
        convolutions = [nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3)]
        layers = OrderedDict[str, nn.Module]()
        for number, convolution in enumerate(convolutions, start=1):
            layers |= {f"conv{number}": convolution, f"relu{number}": relu}
            if number % 2 == 0:
                layers[f"pool{number}"] = pool
        self.feature_extractor = nn.Sequential(layers)
        dense = [nn.Linear(1024, 200), nn.Linear(200, 200), nn.Linear(200, 10)]
        names = ("fc1", "relu1", "fc2", "relu2", "fc3")
        self.classifier = nn.Sequential(
            OrderedDict(zip(names, (dense[0], relu, dense[1], relu, dense[2]), strict=True))
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 1, 28, 28] -> logits [N, 10]."""
        return self.classifier(self.feature_extractor(images).flatten(1))


def trades_network(state: dict[str, np.ndarray]) -> TradesNetwork:
    """The network with these weights, in evaluation mode; it takes gradients of its images alone."""
    network = TradesNetwork()
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return network.eval().requires_grad_(False)
