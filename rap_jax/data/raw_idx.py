"""IDX, the file format of MNIST and of the data sets that take its place.

Reference: LeCun et al., 1998, http://yann.lecun.com/exdb/mnist/
"""

from collections.abc import Mapping

import numpy as np

from rap_jax.config import require
from rap_jax.data.dataset import Split, make_split
from rap_jax.data.raw_files import unpack


def parse_splits(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
    """Parses the four files of a data set.

    Args:
      contents: verified bytes of the four files, gzipped or not, by their names with `.gz`.

    Returns:
      The training data and the test data, each [N, H, W, 1] with labels [N], in the order of the files.

    Raises:
      ValueError: a header is wrong, or images and labels differ in number; the message names the file.
    """
    arrays = {name: parse_idx(unpack(data), name) for name, data in contents.items()}
    return _join(arrays, "train"), _join(arrays, "t10k")


def parse_idx(data: bytes, name: str) -> np.ndarray:
    """Parses IDX bytes with unsigned 8-bit entries.

    Args:
      data: two zero bytes, the type code 8, the rank, one big-endian 32-bit size per axis, then the entries.
      name: what to call the data in an error.

    Returns:
      uint8 array of the shape that the header tells.

    Raises:
      ValueError: the header is not as above, or the number of entries is another than it tells.
    """
    magic = b"\x00\x00\x08"
    require(data[:3] == magic and len(data) > 3, f"IDX header of {name}", data[:4], "bytes 0, 0, 8 and the rank")
    start = 4 + 4 * data[3]
    require(len(data) >= start, f"IDX header of {name}", data[:start], f"{start} bytes, for {data[3]} axes")
    shape = tuple(np.frombuffer(data, ">u4", count=data[3], offset=4).tolist())
    entries = np.frombuffer(data, np.uint8, offset=start)
    require(len(entries) == np.prod(shape, dtype=int), f"number of bytes in {name}", len(entries), f"those of {shape}")
    return entries.reshape(shape)


def _join(arrays: Mapping[str, np.ndarray], split: str) -> Split:
    images, labels = arrays[f"{split}-images-idx3-ubyte.gz"], arrays[f"{split}-labels-idx1-ubyte.gz"]
    return make_split(images[..., None], labels)
