"""Where two sets of settings differ, in words."""

from collections.abc import Iterator, Mapping
from typing import Any


def difference(
    before: Mapping[str, Any], now: Mapping[str, Any], *, of_before: str = "in the folder", of_now: str = "now"
) -> str:
    """One line per setting that differs: `  prune.rho: 0.01 in the folder, 0.02 now`."""
    old, new = dict(_flatten(before)), dict(_flatten(now))
    pairs = {name: (old.get(name, "absent"), new.get(name, "absent")) for name in {**old, **new}}
    return "\n".join(f"  {name}: {a} {of_before}, {b} {of_now}" for name, (a, b) in pairs.items() if a != b)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
