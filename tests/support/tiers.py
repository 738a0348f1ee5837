"""Which cases of a test run in which tier (BUILD.md, "Set up and test")."""

import os
from collections.abc import Collection, Iterable
from typing import Any

import pytest

# Networks that take seconds to compile.
_TIER_OF_NETWORK = {
    "resnet18": pytest.mark.e2e,
    "vgg16": pytest.mark.nightly,
    "wide_resnet28": pytest.mark.nightly,
}
# `RAP_JAX_TESTS_MANY=10 pytest -m nightly` takes ten times as many random cases and kills.
_MANY = int(os.environ.get("RAP_JAX_TESTS_MANY", "1"))


def few_and_many(few: int, many: int) -> list[Any]:
    """Two numbers of random cases for `parametrize`; the second is for the nightly tier."""
    return [few, pytest.param(many * _MANY, marks=pytest.mark.nightly)]


def nightly_but(kept: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases for `parametrize`; those that are not `kept` are for the nightly tier."""
    return [case if case in kept else _marked(case, pytest.mark.nightly) for case in cases]


def large_later(cases: Iterable[Any]) -> list[Any]:
    """The cases for `parametrize`; those whose first value is the name of a large network come in a later tier."""
    tier_of = lambda case: _TIER_OF_NETWORK.get(_values(case)[0])
    return [case if (tier := tier_of(case)) is None else _marked(case, tier) for case in cases]


def _marked(case: Any, mark: pytest.MarkDecorator) -> Any:
    return pytest.param(*_values(case), marks=mark)


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
