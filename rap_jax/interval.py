"""How sure a count of examples makes one of a proportion."""

import math

_Z_95 = 1.959963984540054


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95% score interval of a proportion (Wilson, 1927); unlike the normal one it stays inside [0, 1].

    Raises:
      ValueError: `correct` is not between 0 and `total`, or `total` is 0.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"correct is {correct!r} of total {total!r}; expected 0 <= correct <= total and total >= 1.")
    p, z = correct / total, _Z_95
    centre = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
