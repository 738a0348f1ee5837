"""TFDS builder of MNIST, without TensorFlow. The catalogue's own `mnist` needs TensorFlow to be prepared.

The digests are of the uncompressed bytes, so that a file which somebody unpacked or compressed again still counts as
the official one. Reference: LeCun et al., 1998, http://yann.lecun.com/exdb/mnist/
"""

from collections.abc import Mapping

from rap_jax.data.array_builder import ArrayBuilder
from rap_jax.data.dataset import Split
from rap_jax.data.raw_files import RawFile
from rap_jax.data.raw_idx import parse_splits

_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_SHA256 = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class RapMnist(ArrayBuilder):
    """60,000 training and 10,000 test images of digits, 28x28x1. Registered with TFDS as `rap_mnist`."""

    SHAPE = (28, 28, 1)
    CLASS_NAMES = tuple("0123456789")
    FILES = tuple(RawFile(_URL + name, sha256, digest_of_unpacked=True) for name, sha256 in _SHA256.items())
    CONTENT_SHA256 = "ceda791d3e53beaf95f8e213c414aa4d975006504eff93f785d685ecea3e892c"

    @staticmethod
    def parse(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
        """Returns the training and test data."""
        return parse_splits(contents)
