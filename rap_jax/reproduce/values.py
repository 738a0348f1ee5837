"""How a reproduction writes and judges a value of a cell."""

from rap_jax.reproduce.collect import Size, Value

# Points below the paper within which a value counts as reached: natural accuracy, and accuracy under any attack.
NATURAL_MARGIN, ATTACKED_MARGIN = 1.0, 1.5
NOTHING = "-"


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
    """Writes parameters and zeros: `206,954 parameters, 52,506 after compaction, 74.42% zeros`."""
    parts = [f"{size.parameters:,} parameters"]
    if size.left is not None and size.left != size.parameters:
        parts.append(f"{size.left:,} after compaction")
    if size.sparsity:
        parts.append(f"{100 * size.sparsity:.2f}% zeros")
    return ", ".join(parts)


def is_reached(value: Value) -> bool:
    """Whether our mean is above the paper's number or within the margin below it."""
    margin = NATURAL_MARGIN if value.label == "natural" else ATTACKED_MARGIN
    # A margin of exactly one point is within it, whatever the rounding of the mean.
    return value.difference is not None and round(value.difference, 6) >= -margin
