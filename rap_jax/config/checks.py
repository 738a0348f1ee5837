"""How a bad setting is refused: a `ValueError` that names the value and what was expected."""

import math
from typing import Any


def require(condition: bool, name: str, value: Any, expected: str) -> None:
    """Raises a `ValueError` that names the value and what was expected, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name} is {value!r}; expected {expected}.")


def require_positive(name: str, value: float) -> None:
    """Refuses zero, negative numbers, infinity and NaN."""
    require(math.isfinite(value) and value > 0, name, value, "a number above 0")


def require_at_least(name: str, value: float, least: float, unit: str = "") -> None:
    """Refuses numbers below `least`, infinity and NaN."""
    require(math.isfinite(value) and value >= least, name, value, f"{least} or more{unit}, and finite")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that is none of `choices`, and lists them."""
    require(value in choices, name, value, f"one of {', '.join(choices)}")
