"""Files that are complete or absent, and checks that they still hold what was written.

Only a message about a damaged file may say that the file has to be made again. A missing permission, full memory or a
missing package leave the file intact.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

CHECKSUMS = "files.sha256"
_CHECKSUM = "checksum"


def sorted_json(value: Any) -> bytes:
    """JSON with sorted keys: the same bytes for equal values, whatever the layout of their file."""
    return json.dumps(value, sort_keys=True).encode()


def checksum(value: Mapping[str, Any]) -> str:
    """The hex sha256 of the values of a JSON object."""
    return hashlib.sha256(sorted_json(value)).hexdigest()


def write_checked(value: Mapping[str, Any]) -> str:
    """The text of a JSON object, with the checksum as its last key."""
    as_read = json.loads(json.dumps(value))  # numbers as keys are text there
    return json.dumps({**as_read, _CHECKSUM: checksum(as_read)}, indent=2) + "\n"


def read_checked(text: str) -> dict[str, Any]:
    """The JSON object in a text, without its checksum.

    Raises:
      ValueError: it is no JSON object, it has no checksum, or its values are not those that were written.
    """
    value = read_object(text)
    if _CHECKSUM not in value:
        raise ValueError("it has no checksum, so its values may be others than were written")
    if value.pop(_CHECKSUM) != checksum(value):
        raise ValueError("a value in it was changed after it was written")
    return value


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in a text, whatever it holds.

    Raises:
      ValueError: it is no JSON object.
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"it holds {value!r:.40} and no object")
    return value


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is either the old one or the complete new one, whenever the process dies."""
    # Several machines may write the same report at the same time.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        with naming_the_file(path):
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_writable(folder: Path) -> None:
    """Makes a folder; raises an OSError if no file can be made in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextlib.contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """Adds the name of the file to an OSError, which that of a write lacks."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; what was saved before is whole", str(path)) from error


def write_checksums(folder: Path) -> None:
    """Writes files.sha256 into `folder`, a line for each other file, as `sha256sum -c` reads it."""
    write_atomically(folder / CHECKSUMS, "\n".join(_checksums(folder)) + "\n")


def compare_checksums(folder: Path) -> tuple[bool, str]:
    """Whether there is a files.sha256, and which file differs from it, in words; "" if none does."""
    if not (folder / CHECKSUMS).exists():
        return False, ""
    found = _checksums(folder)
    changed = [line for line in (folder / CHECKSUMS).read_text("latin-1").splitlines() if line not in found]
    return True, f"{changed[0][66:]} is missing or was changed" if changed else ""


def _checksums(folder: Path) -> list[str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CHECKSUMS)
    return [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}" for path in files]


def digest(tree: Any) -> str:
    """Returns the hex sha256 over name, dtype, shape and bytes of every leaf, by name; a key counts by its data."""
    total = hashlib.sha256(sorted_json(layout(tree)))
    for _, leaf in sorted(named_leaves(tree), key=lambda named: named[0]):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        total.update(np.ascontiguousarray(_on_every_process(jax.random.key_data(leaf) if is_key else leaf)).tobytes())
    return total.hexdigest()


def _on_every_process(leaf: Any) -> Any:
    """The array on every process, if it is split over several."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    return jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))  # type: ignore[attr-defined]


def layout(tree: Any) -> dict[str, str]:
    """Returns name -> dtype and shape of every leaf, such as `params/conv1/kernel` -> `float32[5,5,1,32]`."""
    layout = {}
    for name, leaf in named_leaves(tree):
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            raise ValueError(f"{name} of the state is {leaf!r}; expected an array.")
        layout[name] = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return layout


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields every leaf with its path, such as `params/conv1/kernel`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def difference(
    before: Mapping[str, Any], now: Mapping[str, Any], *, of_before: str = "in the folder", of_now: str = "now"
) -> str:
    """One line per setting that differs: `  prune.rho: 0.01 in the folder, 0.02 now`."""
    old, new = dict(flatten(before)), dict(flatten(now))
    pairs = {name: (old.get(name, "absent"), new.get(name, "absent")) for name in {**old, **new}}
    return "\n".join(f"  {name}: {a} {of_before}, {b} {of_now}" for name, (a, b) in pairs.items() if a != b)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested settings by their dotted names, `prune.rho`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_EXTERNAL = (MemoryError, ImportError, jax.errors.JaxRuntimeError)
# Libraries without an exception of their own for missing permissions or space have these words in the message.
_WORDS = ("PERMISSION_DENIED", "Permission denied", "RESOURCE_EXHAUSTED", "No space left on device")
# zipfile seeks to places before the start of a file that was cut short.
_OF_CONTENT = (None, errno.EINVAL)


def is_damage(error: BaseException) -> bool:
    """Whether an error in reading a file means that its content is damaged, as far as the error tells."""
    is_external = isinstance(error, _EXTERNAL) or any(word in str(error) for word in _WORDS)
    return not is_external and not (isinstance(error, OSError) and error.errno not in _OF_CONTENT)


def unreadable(path: str | os.PathLike[str], error: Exception, remedy: str) -> ValueError:
    """The error for a file that cannot be read; it has the `remedy` if the file is damaged."""
    if is_damage(error):
        return ValueError(f"{path} is damaged ({error!r}); {remedy}.")
    return ValueError(f"{path} cannot be read here ({error!r}). The file may be good, so keep it; mend that instead.")


def as_npz(arrays: Mapping[str, Any], *, compressed: bool = False) -> bytes:
    """The content of an .npz file."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


@contextlib.contextmanager
def open_npz(path: Path, remedy: str) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an .npz file by name; raises as `unreadable` says if they are others than the block expects."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:  # numpy leaves a damaged file open
            yield found
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise unreadable(path, error, remedy) from error
