"""What flags may hold beside numbers and words: fractions, several numbers, sparsity by layer pattern, paths."""

import fractions
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from rap_jax.config import require
from rap_jax.config.checks import Syntax

Sparsity = tuple[tuple[str, float], ...]


class Parser(flags.ArgumentParser[Any]):
    """Text -> value. Where `expected` is given, text that cannot be read is refused with it; else `read` says why."""

    def __init__(self, read: Callable[[str], Any], expected: str = ""):
        self.read, self.syntactic_help = read, expected

    def parse(self, argument: Any) -> Any:
        """Returns the value, or raises a ValueError that shows what was given."""
        if not isinstance(argument, str):  # a default
            return argument
        try:
            return self.read(argument)
        except (ValueError, ArithmeticError) as error:
            expected = self.syntactic_help
            raise ValueError(f"expected {expected}, got {argument!r}" if expected else str(error)) from error


class Serializer(flags.ArgumentSerializer[Any]):
    """Value -> text that is read as this value."""

    def __init__(self, write: Callable[[Any], str] = str):
        self.write = write

    def serialize(self, value: Any) -> str:
        """Returns the text."""
        return self.write(value)


def read_sparsity(text: str) -> Sparsity:
    """`0.5` for all layers that can be pruned, pattern:ratio pairs such as `conv*:0.5,fc1:0.75`, or `none`."""
    if text.strip() in ("", "none"):
        return ()
    pairs = [item.strip().rpartition(":") for item in text.split(",")]
    if len(pairs) > 1 and not all(pattern for pattern, _, _ in pairs):
        raise ValueError("a ratio for all layers would hide the other pairs")
    return tuple((pattern.strip() or "*", float(ratio)) for pattern, _, ratio in pairs)


def write_sparsity(sparsity: Sparsity) -> str:
    """The inverse of `read_sparsity`."""
    return ",".join(f"{pattern}:{ratio!r}" for pattern, ratio in sparsity) or "none"


def read_epochs(text: str) -> tuple[float, ...]:
    """Numbers with commas between."""
    return tuple(map(float, text.split(","))) if text.strip() else ()


def write_epochs(epochs: tuple[float, ...]) -> str:
    """The inverse of `read_epochs`; 80 for 80.0."""
    return ",".join(repr(epoch).removesuffix(".0") for epoch in epochs)


def read_size(text: str) -> tuple[int, int] | None:
    """Height and width with a comma between, or None for an empty text."""
    if not text.strip():
        return None
    height, width = map(int, text.split(","))
    return height, width


def read_path(text: str) -> str:
    """A path that means the same from any folder: absolute, or it begins with ~; or the empty string.

    Raises:
      ValueError: see `expand_path`.
    """
    path = expand_path(text)
    return path if not path or path.startswith("~") else str(Path(path).absolute())


def read_dataset(text: str) -> str:
    """The name of a data set, or folder: and a path as `read_path` returns it."""
    name, separator, path = text.partition(":")
    return f"{name}:{read_path(path)}" if separator and name == "folder" else text


def expand_path(path: str) -> str:
    """The path with environment variables put in, unless something of just that name is there.

    Raises:
      ValueError: a variable or a user's home is not known, or no path can be so.
    """
    require("\0" not in path, "a path", path, "no zero byte in it")
    expanded = os.path.expandvars(path)
    unknown = re.findall(r"\$(?:[A-Za-z_]\w*|\{\w+\})", expanded)
    if unknown and not os.path.lexists(os.path.expanduser(path)):
        raise ValueError(f"{path!r} names the environment variable {unknown[0]}, which is not set; set it first.")
    try:
        Path(expanded).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path!r} begins with the home of a user that is not known; write the whole path.") from error
    return expanded


SYNTAXES: Mapping[Syntax, tuple[Parser, Serializer]] = {
    "fraction": (
        Parser(lambda text: float(fractions.Fraction(text.strip())), "a number or a fraction such as 8/255"),
        Serializer(),
    ),
    "epochs": (Parser(read_epochs, "epochs such as 80,150"), Serializer(write_epochs)),
    "size": (Parser(read_size, "height,width such as 32,32"), Serializer(lambda size: ",".join(map(str, size)))),
    "sparsity": (
        Parser(read_sparsity, "a ratio such as 0.5, or pattern:ratio pairs such as conv*:0.5,fc1:0.75, or none"),
        Serializer(write_sparsity),
    ),
    "path": (Parser(read_path), Serializer()),
    "dataset": (Parser(read_dataset), Serializer()),
    "network": (Parser(expand_path), Serializer()),
}
