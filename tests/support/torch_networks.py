"""The networks in PyTorch, as their users have them: modules under the names that a state_dict is exported with.

Written from the names and the paper's Table 1 alone, so that they know nothing of our conversion. Needs torch.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  the name that PyTorch's own code has


class LeNetMnist(nn.Module):
    def __init__(self, width: int, height: int, columns: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 2 * width, 5, 1, 2), nn.Conv2d(2 * width, 4 * width, 5, 1, 2)
        self.fc1 = nn.Linear(4 * width * (height // 4) * (columns // 4), 64 * width)
        self.fc2 = nn.Linear(64 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class LeNetMnistBatchNorm(nn.Module):
    def __init__(self, width: int, height: int, columns: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 2 * width, 5, 1, 2, bias=False), nn.BatchNorm2d(2 * width)
        self.conv2, self.bn2 = nn.Conv2d(2 * width, 4 * width, 5, 1, 2, bias=False), nn.BatchNorm2d(4 * width)
        self.fc1 = nn.Linear(4 * width * (height // 4) * (columns // 4), 64 * width, bias=False)
        self.bn3, self.fc2 = nn.BatchNorm1d(64 * width), nn.Linear(64 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.bn3(self.fc1(x.flatten(1)))))


class LeNetCifar(nn.Module):
    def __init__(self, width: int, height: int, columns: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6 * width, 5), nn.Conv2d(6 * width, 16 * width, 5)
        places = (((height - 4) // 2 - 4) // 2) * (((columns - 4) // 2 - 4) // 2)
        self.fc1 = nn.Linear(16 * width * places, 120 * width)
        self.fc2, self.fc3 = nn.Linear(120 * width, 84 * width), nn.Linear(84 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


class Vgg16(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        modules: list[nn.Module] = []
        before = 3
        for group, times in ((4, 2), (8, 2), (16, 3), (32, 3), (32, 3)):
            for _ in range(times):
                now = group * width
                modules += [nn.Conv2d(before, now, 3, padding=1), nn.BatchNorm2d(now), nn.ReLU()]
                before = now
            modules.append(nn.MaxPool2d(2))
        self.features, self.classifier = nn.Sequential(*modules), nn.Linear(before, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class BasicBlock(nn.Module):
    def __init__(self, before: int, now: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, now, 3, stride, 1, bias=False), nn.BatchNorm2d(now)
        self.conv2, self.bn2 = nn.Conv2d(now, now, 3, 1, 1, bias=False), nn.BatchNorm2d(now)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != now:
            self.shortcut = nn.Sequential(nn.Conv2d(before, now, 1, stride, bias=False), nn.BatchNorm2d(now))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4 * width, 3, 1, 1, bias=False), nn.BatchNorm2d(4 * width)
        before = 4 * width
        for number, factor in enumerate((4, 8, 16, 32), start=1):
            now, stride = factor * width, 1 if number == 1 else 2
            layer = nn.Sequential(BasicBlock(before, now, stride), BasicBlock(now, now, 1))
            self.add_module(f"layer{number}", layer)
            before = now
        self.linear = nn.Linear(before, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, before: int, now: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, now, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(now), nn.Conv2d(now, now, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(before, now, 1, stride, bias=False) if before != now else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return y + (x if self.convShortcut is None else self.convShortcut(active))


class WideGroup(nn.Module):
    def __init__(self, before: int, now: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(WideBlock(before, now, stride), *(WideBlock(now, now, 1) for _ in range(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class WideResNet28(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1, self.block2 = WideGroup(16, 16 * width, 1), WideGroup(16 * width, 32 * width, 2)
        self.block3 = WideGroup(32 * width, 64 * width, 2)
        self.bn1, self.fc = nn.BatchNorm2d(64 * width), nn.Linear(64 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def torch_network(name: str, width: int, shape: tuple[int, int, int]) -> nn.Module:
    """In evaluation mode; takes images [N, C, H, W]."""
    height, columns, _ = shape
    sized = {"lenet_mnist": LeNetMnist, "lenet_mnist_bn": LeNetMnistBatchNorm, "lenet_cifar": LeNetCifar}
    plain = {"vgg16": Vgg16, "resnet18": ResNet18, "wide_resnet28": WideResNet28}
    network = sized[name](width, height, columns) if name in sized else plain[name](width)
    return network.eval()
