"""TFDS builder of MNIST, without TensorFlow. The catalogue's own `mnist` needs TensorFlow to be prepared."""

from collections.abc import Mapping
from pathlib import Path

import rap_jax.data.raw_mnist as raw_mnist
from rap_jax.data.array_builder import ArrayBuilder
from rap_jax.data.dataset import Split


class RapMnist(ArrayBuilder):
    """60,000 training and 10,000 test images of digits, 28x28x1. Registered with TFDS as `rap_mnist`."""

    SHAPE = (28, 28, 1)
    NUM_CLASSES = 10
    CONTENT_SHA256 = "ceda791d3e53beaf95f8e213c414aa4d975006504eff93f785d685ecea3e892c"
    URLS = raw_mnist.URLS

    @staticmethod
    def find_raw(folder: str | Path) -> Mapping[str, str | Path]:
        """Returns the path of each official file, or raises a ValueError that lists those missing."""
        return raw_mnist.find_files(folder)

    @staticmethod
    def read_raw(paths: Mapping[str, str | Path]) -> tuple[Split, Split]:
        """Returns the training and test data, or raises a ValueError that names a damaged file."""
        return raw_mnist.read_files(paths)
