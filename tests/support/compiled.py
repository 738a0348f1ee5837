"""Compiled programs that last from one call of pytest to the next.

A call has a folder of its own, which begins with links to what is kept. So two calls at once disturb each other in
nothing, and what is kept can be emptied at any time: that happens when it would grow above `LIMIT`. Where JAX does not
compress with zlib, nothing is kept.
"""

import contextlib
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

LIMIT = 2**30  # bytes


def kept_programs() -> Path:
    """The folder of this user and this kind of CPU, whose programs another kind cannot run."""
    about = Path("/proc/cpuinfo")
    features = (
        [line for line in about.read_text().splitlines() if line.startswith("flags")][:1] if about.exists() else []
    )
    kind = hashlib.sha256("".join(features).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"rap_jax_compiled_{os.getuid()}_{kind}"


def lend(kept: Path, folder: Path) -> None:
    """Links all that is kept into the folder of a call."""
    kept.mkdir(mode=0o700, exist_ok=True)
    if _is_private(kept):
        _link(kept.iterdir(), folder)


def keep(folder: Path, kept: Path, limit: int = LIMIT) -> None:
    """Links what a call has compiled into what is kept, but for files that a killed process has left half written."""
    if not _is_private(kept):
        return
    known = {path.name: path.stat().st_size for path in kept.iterdir()}
    new = [path for path in folder.iterdir() if path.name not in known and _is_whole(path)]
    if sum(known.values()) + sum(path.stat().st_size for path in new) > limit:
        for path in kept.iterdir():
            path.unlink(missing_ok=True)
    _link(new, kept)


def _is_private(folder: Path) -> bool:
    """Whether nobody else can have put programs there."""
    about = folder.stat()
    return about.st_uid == os.getuid() and not about.st_mode & 0o077


def _link(paths: Iterable[Path], folder: Path) -> None:
    for path in paths:
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # another call was first, or emptied it
            os.link(path, folder / path.name)


def _is_whole(path: Path) -> bool:
    stream = zlib.decompressobj()
    try:
        stream.decompress(path.read_bytes())
    except zlib.error:
        return False
    return stream.eof
