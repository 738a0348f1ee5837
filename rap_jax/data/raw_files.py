"""The official files of a data set: where they are, and whether they are intact."""

import dataclasses
import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

from rap_jax.config import require
from rap_jax.unreadable import unreadable

_GZIP_MAGIC = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class RawFile:
    """An official file.

    Attributes:
      url: where it is; the last part is its name.
      sha256: its digest, in hex.
      digest_of_unpacked: the digest is of what is in the gzip file. A copy that somebody unpacked, or packed again,
        then counts as the official one; otherwise only the very bytes of the download do.
    """

    url: str
    sha256: str
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
    """Finds files by name in a folder, without reading them.

    Args:
      files: what to look for.
      folder: holds each under its name (preferred), or without `.gz` if its digest allows that.

    Returns:
      The path of each file, by its name.

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
        raise ValueError(message + _why_unpacked_is_refused(missing, folder))
    return found


def read_verified(path: str | Path, file: RawFile) -> bytes:
    """Reads one file and refuses it unless it is the official one.

    Args:
      path: where it is.
      file: which official file it should be.

    Returns:
      The bytes of which the digest is known: unpacked if `file.digest_of_unpacked`, else as they are in the file.

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


def _why_unpacked_is_refused(missing: Sequence[RawFile], folder: Path) -> str:
    if not any((folder / file.unpacked_name).is_file() for file in missing):
        return ""
    return ". Unpacked files are there, but cannot be checked: the known digests are those of the packed ones"


def _listing(files: Sequence[RawFile]) -> str:
    return ", ".join(file.name for file in files)
