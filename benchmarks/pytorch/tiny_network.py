"""`benchmarks.parity.tiny_network` in PyTorch."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the name that PyTorch's own code has

from benchmarks.parity.tiny_network import TinyWeights


class TinyNetwork(nn.Module):
    """A 3x3 convolution, ReLU and a dense layer, with weights in the layout of `rap_jax`."""

    def __init__(self, weights: TinyWeights):
        super().__init__()
        as_buffer = lambda name, array: self.register_buffer(name, torch.from_numpy(np.array(array)))
        as_buffer("kernel", weights.kernel.transpose(3, 2, 0, 1))
        as_buffer("bias", weights.bias)
        as_buffer("dense", weights.dense)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> logits [N, K]."""
        hidden = torch.relu(F.conv2d(images, self.get_buffer("kernel"), self.get_buffer("bias"), padding=1))
        return hidden.permute(0, 2, 3, 1).flatten(1) @ self.get_buffer("dense")
