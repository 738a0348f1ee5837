"""TFDS builder of Fashion-MNIST, without TensorFlow.

Only the digests of the packed files are published, so an unpacked copy, or one that was packed again, is refused.
Reference: Xiao et al., Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, 2017,
https://arxiv.org/abs/1708.07747. Digests as registered with TFDS.
"""

from collections.abc import Mapping

from rap_jax.data.array_builder import ArrayBuilder
from rap_jax.data.dataset import Split
from rap_jax.data.raw_files import RawFile
from rap_jax.data.raw_idx import parse_splits

_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


class RapFashionMnist(ArrayBuilder):
    """60,000 training and 10,000 test images of clothes, 28x28x1. Registered with TFDS as `rap_fashion_mnist`."""

    SHAPE = (28, 28, 1)
    CLASS_NAMES = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    FILES = tuple(RawFile(_URL + name, sha256) for name, sha256 in _SHA256.items())

    @staticmethod
    def parse(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
        """Returns the training and test data."""
        return parse_splits(contents)
