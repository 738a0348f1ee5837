"""The official raw files of data sets: found, compared with their digests, and parsed.

IDX is the format of MNIST and Fashion-MNIST (LeCun et al., 1998, http://yann.lecun.com/exdb/mnist/). The binary version
of CIFAR-10 has records of one label and one image (Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html).
"""

import dataclasses
import gzip
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rap_jax._runtime.integrity import unreadable
from rap_jax.config import require
from rap_jax.data.dataset import Split, make_split

CIFAR10_CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR10_TEST_FILE = "test_batch.bin"
CIFAR10_FILES = (*CIFAR10_TRAIN_FILES, CIFAR10_TEST_FILE)

_CIFAR10_RECORD_BYTES = 1 + 3 * 32 * 32
_GZIP_MAGIC = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class RawFile:
    """An official file."""

    url: str  # its last part is the name
    sha256: str  # in hex
    # The digest is of the content of the gzip file. A copy that was unpacked, or packed again, then counts as the
    # official one; otherwise only the bytes of the download do.
    digest_of_unpacked: bool = False

    @property
    def name(self) -> str:
        """The name under which it is downloaded."""
        return self.url.rpartition("/")[2]

    @property
    def unpacked_name(self) -> str:
        """The name without `.gz`."""
        return self.name.removesuffix(".gz")


def find_files(files: Sequence[RawFile], folder: str | Path) -> dict[str, Path]:
    """The path of each file by its name; it has that name in the folder, or lacks `.gz` if its digest allows that.

    Raises:
      ValueError: the folder is none, or files are missing; the message lists them all.
    """
    folder = Path(folder).expanduser()
    places = ", ".join(sorted({file.url.removesuffix(file.name) for file in files}))
    require(folder.is_dir(), "raw_data_dir", str(folder), f"a folder with {_listing(files)} of {places}")
    found = {file.name: path for file in files if (path := _find(file, folder)) is not None}
    missing = [file for file in files if file.name not in found]
    if missing:
        message = f"raw_data_dir {folder} lacks {_listing(missing)}. Put them there, from {places}"
        if any((folder / file.unpacked_name).is_file() for file in missing):
            reason = "the known digests are those of the packed ones"
            message += f". Unpacked files are there, but cannot be checked: {reason}"
        raise ValueError(message)
    return found


def read_verified(path: str | Path, file: RawFile) -> bytes:
    """The bytes of an official file of which the digest is known: unpacked if `file.digest_of_unpacked`.

    Raises:
      ValueError: it cannot be read or unpacked, or its digest is wrong; the message names the file and both digests.
    """
    advice = f"Delete it and get it again from {file.url}."
    try:
        data = Path(path).read_bytes()
        data = unpack(data) if file.digest_of_unpacked else data
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error, advice.rstrip(".")) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256:
        what = "its uncompressed bytes" if file.digest_of_unpacked else "the file (packing it again changes it)"
        problem = f"{path} is damaged or another file: SHA-256 of {what}"
        raise ValueError(f"{problem}: expected {file.sha256}, got {digest}. {advice}")
    return data


def unpack(data: bytes) -> bytes:
    """Returns what is in a gzip file, and other bytes as they are.

    Told by content: a browser may unpack a download and leave the name ending in .gz.
    """
    return gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data


def _find(file: RawFile, folder: Path) -> Path | None:
    names = (file.name, file.unpacked_name) if file.digest_of_unpacked else (file.name,)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _listing(files: Sequence[RawFile]) -> str:
    return ", ".join(file.name for file in files)


def parse_idx_files(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
    """The training and the test data, each [N, H, W, 1] with labels [N], in the order of the files.

    Args:
      contents: bytes of the four files, gzipped or not, by their names with `.gz`.

    Raises:
      ValueError: a header is wrong, or images and labels differ in number; the message names the file.
    """
    arrays = {name: parse_idx(unpack(data), name) for name, data in contents.items()}
    train, test = (
        make_split(arrays[f"{part}-images-idx3-ubyte.gz"][..., None], arrays[f"{part}-labels-idx1-ubyte.gz"])
        for part in ("train", "t10k")
    )
    return train, test


def parse_idx(data: bytes, name: str) -> np.ndarray:
    """The uint8 array in IDX bytes, of the shape that their header tells; an error calls them `name`.

    The header is two zero bytes, the type code 8, the rank, and one big-endian 32-bit size per axis.

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


def parse_cifar10_files(contents: Mapping[str, bytes]) -> tuple[Split, Split]:
    """The training data, the five batches in turn, and the test data, each [N, 32, 32, 3] with labels [N].

    Args:
      contents: the bytes of each file, by the names in `CIFAR10_FILES`.

    Raises:
      ValueError: a file holds no whole number of records, or a label above 9; the message names it.
    """
    batches = [parse_cifar10_records(contents[name], name) for name in CIFAR10_TRAIN_FILES]
    train = Split(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))
    return train, parse_cifar10_records(contents[CIFAR10_TEST_FILE], CIFAR10_TEST_FILE)


def parse_cifar10_records(data: bytes, name: str) -> Split:
    """Images, uint8 [N, 32, 32, 3], and labels, int32 in 0..9, [N], of one file, which an error calls `name`.

    An example has 3073 bytes: the label, then the red, the green and the blue plane, each row by row.

    Raises:
      ValueError: there is no whole number of records, or none, or a label is above 9.
    """
    whole = len(data) > 0 and len(data) % _CIFAR10_RECORD_BYTES == 0
    require(whole, f"number of bytes in {name}", len(data), f"a multiple of {_CIFAR10_RECORD_BYTES}, and not 0")
    records = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR10_RECORD_BYTES)
    labels = records[:, 0]
    require(bool(labels.max() < 10), f"largest label in {name}", int(labels.max()), "labels from 0 to 9")
    return make_split(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)
