"""What flags may hold beside numbers and words: fractions, sparsity by layer pattern, paths."""

import fractions
import os
import re
from pathlib import Path
from typing import Any

from absl import flags

from rap_jax.config import require


class FractionParser(flags.ArgumentParser[float]):
    """A number, or a fraction of two whole numbers such as 8/255."""

    syntactic_help = "a number or a fraction such as 8/255"

    def parse(self, argument: Any) -> float:
        """Returns the number, or raises a ValueError that shows what was given."""
        try:
            return float(fractions.Fraction(str(argument).strip()))
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            raise ValueError(f"expected {self.syntactic_help}, got {argument!r}") from error


class SparsityParser(flags.ArgumentParser[tuple[tuple[str, float], ...]]):
    """`0.5` for all layers that can be pruned, pattern:ratio pairs such as `conv*:0.5,fc1:0.75`, or `none`."""

    syntactic_help = "a ratio such as 0.5, or pattern:ratio pairs such as conv*:0.5,fc1:0.75, or none"

    def parse(self, argument: Any) -> tuple[tuple[str, float], ...]:
        """Returns (pattern, ratio) pairs, or raises a ValueError that shows what was given."""
        if isinstance(argument, tuple):
            return argument
        if str(argument).strip() in ("", "none"):
            return ()
        pairs = [item.strip().rpartition(":") for item in str(argument).split(",")]
        try:
            found = tuple((pattern.strip() or "*", float(ratio)) for pattern, _, ratio in pairs)
        except ValueError as error:
            raise ValueError(f"expected {self.syntactic_help}, got {argument!r}") from error
        if len(found) > 1 and not all(pattern for pattern, _, _ in pairs):  # the first would hide the others
            raise ValueError(f"expected {self.syntactic_help}, got {argument!r}")
        return found


class SparsitySerializer(flags.ArgumentSerializer[tuple[tuple[str, float], ...]]):
    """The inverse of `SparsityParser.parse`."""

    def serialize(self, value: tuple[tuple[str, float], ...]) -> str:
        """Returns pattern:ratio pairs, or `none`."""
        return ",".join(f"{pattern}:{ratio!r}" for pattern, ratio in value) or "none"


class PathParser(flags.ArgumentParser[str]):
    """A path that means the same from any folder: environment variables are put in, and a relative one is completed."""

    syntactic_help = "a path"

    def parse(self, argument: Any) -> str:
        """Returns an absolute path, one that begins with ~, or the empty string; raises a ValueError for no path."""
        path = expand_path(str(argument))
        return path if not path or path.startswith("~") else str(Path(path).absolute())


class DatasetParser(PathParser):
    """The name of a data set, or folder:PATH."""

    syntactic_help = "a data set, or folder:PATH"

    def parse(self, argument: Any) -> str:
        """Returns the name, or folder: and a path as `PathParser` returns it."""
        name, separator, path = str(argument).partition(":")
        return f"{name}:{super().parse(path)}" if separator and name == "folder" else str(argument)


class NetworkParser(flags.ArgumentParser[str]):
    """A path or module:function."""

    syntactic_help = "a path, or module:function"

    def parse(self, argument: Any) -> str:
        """Returns it with environment variables put in."""
        return expand_path(str(argument))


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
