"""TFDS builder of SVHN, cropped digits, without TensorFlow and without the `extra` training images.

Reference: Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011,
http://ufldl.stanford.edu/housenumbers/ ("Format 2"). Digests as in the catalogue of TFDS.
"""

import io
from collections.abc import Mapping

import numpy as np
import scipy.io

from rap_jax.config import require
from rap_jax.data.array_builder import ArrayBuilder
from rap_jax.data.dataset import Split, make_split
from rap_jax.data.raw_files import RawFile

_URL = "http://ufldl.stanford.edu/housenumbers/"
_SHA256 = {
    "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}


class RapSvhn(ArrayBuilder):
    """73,257 training and 26,032 test images of house numbers, 32x32x3. Registered with TFDS as `rap_svhn`."""

    SHAPE = (32, 32, 3)
    CLASS_NAMES = tuple("0123456789")
    FILES = tuple(RawFile(_URL + name, sha256) for name, sha256 in _SHA256.items())

    @staticmethod
    def parse(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
        """Returns the training and test data."""
        train, test = (parse_mat(contents[name], name) for name in _SHA256)
        return train, test


def parse_mat(data: bytes, name: str) -> Split:
    """Parses one MATLAB file.

    Args:
      data: holds `X`, uint8 [H, W, 3, N], and `y`, [N, 1], in which the label 10 stands for the digit 0.
      name: what to call the data in an error.

    Returns:
      Images, uint8 [N, H, W, 3], and labels, int32 in 0..9, [N].

    Raises:
      ValueError: a label is not in 1..10.
    """
    arrays = scipy.io.loadmat(io.BytesIO(data), variable_names=["X", "y"])
    labels = arrays["y"].reshape(-1)
    strange = labels[~np.isin(labels, np.arange(1, 11))]
    require(not len(strange), f"labels in {name}", strange[:5].tolist(), "whole numbers from 1 to 10")
    return make_split(arrays["X"].transpose(3, 0, 1, 2), labels % 10)
