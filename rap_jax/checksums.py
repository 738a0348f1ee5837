"""The sha256 of every file of a folder, kept in it: whether it still is as it was written (`sha256sum -c` reads it)."""

import hashlib
import os
from pathlib import Path

CHECKSUMS = "files.sha256"


def write_checksums(folder: Path) -> None:
    """Writes them into `folder`, atomically."""
    temporary = folder / f"{CHECKSUMS}.tmp"
    temporary.write_text("\n".join(_checksums(folder)) + "\n")
    os.replace(temporary, folder / CHECKSUMS)


def compare_checksums(folder: Path) -> tuple[bool, str]:
    """Returns whether there are checksums, and what is wrong with the files, or "" if they are as they were written."""
    if not (folder / CHECKSUMS).exists():
        return False, ""
    found = _checksums(folder)
    changed = [line for line in (folder / CHECKSUMS).read_text("latin-1").splitlines() if line not in found]
    return True, f"{changed[0][66:]} is missing or was changed" if changed else ""


def _checksums(folder: Path) -> list[str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CHECKSUMS)
    return [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}" for path in files]
