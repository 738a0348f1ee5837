"""How a setting is described, and how a bad one is refused: the value, and what was expected."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Syntax = Literal["fraction", "path", "dataset", "network", "sparsity", "epochs", "size"]
_Value = TypeVar("_Value")


def setting(
    default: _Value, text: str, *, flag: str = "", choices: tuple[str, ...] = (), syntax: Syntax | None = None
) -> _Value:
    """A field of a config that a flag sets.

    Args:
      default: of the field and of the flag.
      text: what `--help` says; words in braces are filled in where a config has several groups of flags.
      flag: name of the flag, where it is not that of the field.
      choices: what the flag may be, where the type of the field does not say it.
      syntax: how the flag is written, where the type of the field does not say it.
    """
    metadata = {"help": text, "flag": flag, "choices": choices, "syntax": syntax}
    field: Any = dataclasses.field(default=default, metadata=metadata)
    return field


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


def require_choices(config: Any) -> None:
    """Refuses a field whose type lists what it may be, and which is something else."""
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            require_choice(name, getattr(config, name), get_args(kind))


def require_seed(seed: int) -> None:
    """Refuses a seed that 32 bits do not hold."""
    require(0 <= seed < 2**32, "seed", seed, "a whole number from 0 to 4294967295")


# Settings that came after results were committed, and what holds where they are absent: they are off.
ADDED_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "step_schedule": "constant",
        "train_leaky_slope": 0.0,
        "num_cycles": 1,
        "selection": "pgd",
        "merge_duplicates": False,
        "budget_of": "parameters",
        "ema_decay": 0.0,
        "awp_gamma": 0.0,
        "distillation": "none",
        "certify": "none",
        "method": "admm",
        "harp_growth": 0.01,
        "twinrep_cut": 0.1,
        "flyingbird_interval": 0.5,
        "flyingbird_share": 0.5,
    }
)


def complete(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON that an earlier version wrote, with those of `ADDED_SETTINGS` that `now` has beside them."""
    inner = lambda name, value: isinstance(value, Mapping) and isinstance(now.get(name), Mapping)
    found = {name: complete(value, now[name]) if inner(name, value) else value for name, value in before.items()}
    return found | {name: value for name, value in ADDED_SETTINGS.items() if name in now and name not in before}
