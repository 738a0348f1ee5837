"""How a report of a table writes texts, numbers and sizes, in Markdown and in HTML."""

import re

from rap_jax.reproduction.results import MeasuredCell, Size, Value

NOTHING = "-"
# A difference of so many points has the first, second or third shade.
_SHADES = (0.25, 2.0, 5.0)


class Code(str):
    """Text that a report shows as code."""


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in a line of its own or in a table."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text as code in Markdown, in a line of its own or in a table, whatever it holds."""
    line = " ".join(text.split()).replace("|", r"\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}" if line else ""


def shown(text: str) -> str:
    """Code, or plain text that keeps a space at its ends, between pieces of a line."""
    if isinstance(text, Code):
        return code(text)
    return f"{' ' * text.startswith(' ')}{plain(text)}{' ' * text.endswith(' ')}"


def as_number(percent: float | None) -> str:
    """Writes percent as the paper does, 91.38; - without a number."""
    return NOTHING if percent is None else f"{percent:.2f}"


def as_difference(value: Value) -> str:
    """Writes our mean less the paper's number with its sign, in points; - where one of them is missing."""
    if value.difference is None:
        return NOTHING
    rounded = round(value.difference, 2)
    return f"{rounded:+.2f}" if rounded else "0.00"  # no -0.00


def as_spread(value: Value) -> str:
    """Writes the lowest and the highest seed, `91.20 to 92.05`; empty with fewer than two seeds."""
    if value.spread is None or len(value.by_seed) < 2:
        return ""
    return " to ".join(as_number(end) for end in value.spread)


def as_seeds(value: Value) -> str:
    """Writes how many seeds are done, `2 of 3 seeds` or `3 seeds`."""
    done, wanted = len(value.by_seed), value.num_seeds
    return f"{done} seed{'s' if done != 1 else ''}" if done == wanted else f"{done} of {wanted} seeds"


def as_size(size: Size) -> str:
    """Writes `206,954 parameters, 52,506 after compaction, 74.42% zeros, 91,584 multiply-adds`."""
    parts = [f"{size.parameters:,} parameters"]
    if size.compacted is not None and size.compacted != size.parameters:
        parts.append(f"{size.compacted:,} after compaction")
    if size.sparsity:
        parts.append(f"{100 * size.sparsity:.2f}% zeros")
        parts += [f"{size.multiply_adds:,} multiply-adds"] if size.multiply_adds is not None else []
    return ", ".join(parts)


def shade(value: Value) -> str:
    """The CSS class of a difference: `up1` to `up3` above the paper, `down1` to `down3` below it, else empty."""
    step = sum(abs(value.difference or 0.0) >= points for points in _SHADES)
    return f"{'up' if (value.difference or 0.0) > 0 else 'down'}{step}" if step else ""


def anchor(cell: MeasuredCell, value: Value, seed: int) -> str:
    """The id of the row of one number, to which its mean links."""
    return f"{cell.row}/{cell.column}/{value.label}/{seed}".replace(" ", "-")
