"""The paper's LeNet and ResNet-18 in PyTorch, with the layers and names of `rap_jax.models`.

Reference: Ye et al., 2019, Table 1, https://arxiv.org/abs/1903.12561.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the name that PyTorch's own code has


class LeNet(nn.Module):
    """LeNet of width w for 28x28x1: conv 2w, pool, conv 4w, pool, dense 64w, dense 10."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2 * width, 5, padding=2)
        self.conv2 = nn.Conv2d(2 * width, 4 * width, 5, padding=2)
        self.fc1 = nn.Linear(7 * 7 * 4 * width, 64 * width)
        self.fc2 = nn.Linear(64 * width, 10)
        for conv in (self.conv1, self.conv2):
            nn.init.xavier_uniform_(conv.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 1, 28, 28] -> logits [N, 10]."""
        hidden = F.max_pool2d(F.relu(self.conv1(images)), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2)
        return self.fc2(F.relu(self.fc1(hidden.flatten(1))))


class ConvNorm(nn.Module):
    """A convolution without bias, then BatchNorm."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        return self.norm(self.conv(images))


class BasicBlock(nn.Module):
    """relu(conv2(relu(conv1(x))) + shortcut(x)); the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 3, stride)
        self.conv2 = ConvNorm(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        return F.relu(self.conv2(F.relu(self.conv1(images))) + self.shortcut(images))


class ResNet18(nn.Module):
    """ResNet-18 of width w for 32x32x3: a stem, four groups of two blocks with 4w, 8w, 16w, 32w channels, dense 10."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = ConvNorm(3, 4 * width, 3)
        inputs = 4 * width
        for group, (channels, stride) in enumerate(((4, 1), (8, 2), (16, 2), (32, 2)), start=1):
            for number in range(2):
                block = BasicBlock(inputs, channels * width, stride if number == 0 else 1)
                self.add_module(f"group{group}_block{number}", block)
                inputs = channels * width
        self.fc = nn.Linear(inputs, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, 32, 32] -> logits [N, 10]."""
        hidden = F.relu(self.conv1(images))
        for name, block in self.named_children():
            if name.startswith("group"):
                hidden = block(hidden)
        return self.fc(hidden.mean((2, 3)))


def create_network(name: str, width: int) -> nn.Module:
    """The network of that name in `rap_jax`: `lenet_mnist` or `resnet18`."""
    return {"lenet_mnist": LeNet, "resnet18": ResNet18}[name](width)
