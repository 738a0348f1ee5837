"""The four official MNIST files: where they are, whether they are intact, what is in them.

The digests are of the uncompressed bytes, so that a file which somebody unpacked or compressed again still counts as
the official one. Reference: LeCun et al., 1998, http://yann.lecun.com/exdb/mnist/ (describes the IDX format).
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rap_jax.config import require
from rap_jax.data.dataset import Split, make_split

BASE_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
URLS = {name: f"{BASE_URL}{name}.gz" for name in SHA256}

_GZIP_MAGIC = b"\x1f\x8b"
_IDX_UINT8 = b"\x00\x00\x08"


def find_files(folder: str | Path) -> dict[str, Path]:
    """Finds the four files by name in a folder, without reading them.

    Args:
      folder: holds each file as `NAME.gz` (preferred when both exist) or as `NAME`.

    Returns:
      The path of each file, by the names in `SHA256`.

    Raises:
      ValueError: the folder is none, or files are missing; the message lists them all.
    """
    folder = Path(folder).expanduser()
    require(folder.is_dir(), "raw_data_dir", str(folder), f"a folder with {_listing(SHA256)} of {BASE_URL}")
    candidates = {name: [path for path in (folder / f"{name}.gz", folder / name) if path.is_file()] for name in SHA256}
    missing = [name for name, paths in candidates.items() if not paths]
    if missing:
        raise ValueError(f"raw_data_dir {folder} lacks {_listing(missing)}. Put them there, from {BASE_URL}")
    return {name: paths[0] for name, paths in candidates.items()}


def read_files(paths: Mapping[str, str | Path]) -> tuple[Split, Split]:
    """Reads and verifies the four files.

    Args:
      paths: the path of each file, by the names in `SHA256`; each file may be gzipped or not.

    Returns:
      The training data, [60000, 28, 28, 1], and the test data, [10000, 28, 28, 1], in the order of the files.

    Raises:
      ValueError: a file is damaged; the message names it.
    """
    arrays = {name: parse_idx(read_verified(paths[name], name), name) for name in SHA256}
    train_images, train_labels, test_images, test_labels = (arrays[name] for name in SHA256)
    return make_split(train_images[..., None], train_labels), make_split(test_images[..., None], test_labels)


def read_verified(path: str | Path, name: str) -> bytes:
    """Reads one file, gzipped or not, and refuses it unless it is the official one.

    Args:
      path: the file.
      name: which official file it should be, a key of `SHA256`.

    Returns:
      Its uncompressed bytes.

    Raises:
      ValueError: it cannot be read or unpacked, or its digest is wrong; the message names the file and both digests.
    """
    advice = f"Delete it and get it again from {URLS[name]}."
    try:
        data = Path(path).read_bytes()
        # Told by content: a browser may unpack a download and leave the name ending in .gz.
        data = gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or unreadable: {error}. {advice}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256[name]:
        expected = f"expected {SHA256[name]}, got {digest}"
        raise ValueError(f"{path} is damaged: SHA-256 of its uncompressed bytes: {expected}. {advice}")
    return data


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
    require(data[:3] == _IDX_UINT8 and len(data) > 3, f"IDX header of {name}", data[:4], "bytes 0, 0, 8 and the rank")
    start = 4 + 4 * data[3]
    require(len(data) >= start, f"IDX header of {name}", data[:start], f"{start} bytes, for {data[3]} axes")
    shape = tuple(np.frombuffer(data, ">u4", count=data[3], offset=4).tolist())
    entries = np.frombuffer(data, np.uint8, offset=start)
    require(len(entries) == np.prod(shape, dtype=int), f"number of bytes in {name}", len(entries), f"those of {shape}")
    return entries.reshape(shape)


def _listing(names: Mapping[str, str] | list[str]) -> str:
    return ", ".join(f"{name}.gz" for name in names)
