"""The networks of the paper once more, in NumPy and float64, from their definitions: what the tests compare with."""

import copy
from typing import Any

import numpy as np

Tree = dict[str, Any]


def random_weights(shapes: Tree, seed: int) -> Tree:
    """Draws weights with which activations neither vanish nor explode, and no scale, shift or bias is trivial."""
    generator = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == "kernel":
            return generator.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        if name in ("scale", "var"):
            return generator.uniform(0.5, 1.5, size=shape)
        return generator.normal(size=shape) / 3

    def fill(tree: Tree) -> Tree:
        return {k: fill(v) if isinstance(v, dict) else draw(k, v.shape).astype(np.float32) for k, v in tree.items()}

    return fill(shapes)


class NumpyNetwork:
    """Weights as given, statistics that training-mode calls move."""

    def __init__(self, params: Tree, batch_stats: Tree) -> None:
        self.params = params
        self.batch_stats = copy.deepcopy(batch_stats)

    def __call__(self, name: str, images: np.ndarray, train: bool) -> np.ndarray:
        self.train = train
        return getattr(self, name)(images.astype(np.float64))

    def lenet_mnist_bn(self, hidden: np.ndarray) -> np.ndarray:
        for name in ("conv1", "conv2"):
            hidden = max_pool(relu(self.norm(name, self.conv(name, hidden, padding=2))))
        return self.dense("fc2", relu(self.norm("fc1", self.dense("fc1", hidden.reshape(len(hidden), -1)))))

    def lenet_cifar(self, hidden: np.ndarray) -> np.ndarray:
        hidden = max_pool(relu(self.conv("conv1", hidden)))
        hidden = max_pool(relu(self.conv("conv2", hidden)))
        hidden = hidden.reshape(len(hidden), -1)
        return self.dense("fc3", relu(self.dense("fc2", relu(self.dense("fc1", hidden)))))

    def vgg16(self, hidden: np.ndarray) -> np.ndarray:
        for number in range(1, 14):
            hidden = relu(self.norm(f"conv{number}", self.conv(f"conv{number}", hidden, padding=1)))
            if number in (2, 4, 7, 10, 13):
                hidden = max_pool(hidden)
        return self.dense("fc", hidden.mean((1, 2)))

    def resnet18(self, hidden: np.ndarray) -> np.ndarray:
        hidden = relu(self.norm("conv1", self.conv("conv1", hidden, padding=1)))
        for group in (1, 2, 3, 4):
            for block in (0, 1):
                hidden = self.basic_block(f"group{group}_block{block}", hidden, 2 if group > 1 and block == 0 else 1)
        return self.dense("fc", hidden.mean((1, 2)))

    def basic_block(self, path: str, inputs: np.ndarray, stride: int) -> np.ndarray:
        hidden = relu(self.norm(f"{path}/conv1", self.conv(f"{path}/conv1", inputs, stride, 1)))
        hidden = self.norm(f"{path}/conv2", self.conv(f"{path}/conv2", hidden, padding=1))
        if stride == 2:
            inputs = self.norm(f"{path}/shortcut", self.conv(f"{path}/shortcut", inputs, stride))
        return relu(hidden + inputs)

    def wide_resnet28(self, hidden: np.ndarray) -> np.ndarray:
        hidden = self.conv("conv1", hidden, padding=1)
        for group in (1, 2, 3):
            for block in (0, 1, 2, 3):
                path, stride = f"group{group}_block{block}", 2 if group > 1 and block == 0 else 1
                active = relu(self.norm(f"{path}/norm1", hidden))
                inner = relu(self.norm(f"{path}/conv1", self.conv(f"{path}/conv1", active, stride, 1)))
                inner = self.conv(f"{path}/conv2", inner, padding=1)
                if inner.shape[-1] != hidden.shape[-1]:
                    hidden = self.conv(f"{path}/shortcut", active, stride)
                hidden = hidden + inner
        return self.dense("fc", relu(self.norm("norm", hidden)).mean((1, 2)))

    def conv(self, path: str, images: np.ndarray, stride: int = 1, padding: int = 0) -> np.ndarray:
        layer = at(self.params, path)
        return conv(images, layer["kernel"].astype(np.float64), stride, padding) + layer.get("bias", 0)

    def dense(self, path: str, inputs: np.ndarray) -> np.ndarray:
        layer = at(self.params, path)
        return inputs @ layer["kernel"].astype(np.float64) + layer.get("bias", 0)

    def norm(self, path: str, inputs: np.ndarray) -> np.ndarray:
        layer, stats = at(self.params, path), at(self.batch_stats, path)
        mean, var = stats["mean"], stats["var"]
        if self.train:
            rows = inputs.reshape(-1, inputs.shape[-1])
            mean, var = rows.mean(0), rows.var(0)
            stats["mean"] = 0.9 * stats["mean"] + 0.1 * mean
            stats["var"] = 0.9 * stats["var"] + 0.1 * rows.var(0, ddof=1)
        return (inputs - mean) / np.sqrt(var + 1e-5) * layer["scale"] + layer["shift"]


def at(tree: Tree, path: str) -> Tree:
    """The layer at a path such as `group1_block0/conv1`."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def relu(inputs: np.ndarray) -> np.ndarray:
    return np.maximum(inputs, 0)


def max_pool(images: np.ndarray) -> np.ndarray:
    rows, columns = images.shape[1] // 2, images.shape[2] // 2
    cropped = images[:, : 2 * rows, : 2 * columns]
    return cropped.reshape(len(images), rows, 2, columns, 2, -1).max((2, 4))


def conv(images: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
    return np.einsum("nhwcij,ijcf->nhwf", windows[:, ::stride, ::stride], kernel, optimize=True)
