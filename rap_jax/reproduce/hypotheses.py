"""Which tables have a page of their own, on what the paper's text claims from them."""

from collections.abc import Callable

from rap_jax.reproduce.claim import Page
from rap_jax.reproduce.collect import Measured
from rap_jax.reproduce.inherited import inherited_page
from rap_jax.reproduce.scratch import scratch_page

_PAGES: dict[str, Callable[[Measured], Page]] = {"scratch": scratch_page, "5": inherited_page}


def hypothesis(measured: Measured) -> Page | None:
    """The page of a table whose question the paper answers in its text; None for all others."""
    make = _PAGES.get(measured.table.name)
    return make(measured) if make else None
