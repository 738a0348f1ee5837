"""What flags may hold beside numbers and words: fractions, and sparsity by layer pattern."""

import fractions
from typing import Any

from absl import flags


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
