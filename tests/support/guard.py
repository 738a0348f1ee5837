"""A plugin of pytest that fails a test of the default tier whose own call takes more than 5 seconds.

Seconds of CPU of this process and of those that it waited for, or of the clock where several cores shared the work:
another program on the machine fails no test. What fixtures take is not counted, since several tests share it.
"""

import os
from collections.abc import Generator

import pytest

SECONDS = 5.0
DEFAULT_TIER = "not e2e and not nightly"


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    before = os.times()
    result = yield
    seconds = _seconds_between(before, os.times())
    # The calls of later tiers compile with every optimisation, which takes twice as long.
    if pyfuncitem.config.option.markexpr == DEFAULT_TIER and seconds > SECONDS:
        pytest.fail(
            f"{pyfuncitem.nodeid} took {seconds:.1f} seconds; expected at most {SECONDS:g} in the default tier. "
            "Make it cheaper, or mark it e2e or nightly.",
            pytrace=False,
        )
    return result


def _seconds_between(before: os.times_result, after: os.times_result) -> float:
    *busy, elapsed = (end - start for start, end in zip(before, after, strict=True))
    return min(sum(busy), elapsed)
