"""The guard of the default tier fails a test for its own seconds of work, and for nothing else."""

import guard
import pytest

SOURCE = """
import time
import pytest

def work():
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass

@pytest.fixture
def expensive():
    work()

def test_long():
    work()

def test_quick():
    pass

def test_waits():
    time.sleep(0.3)

def test_what_a_fixture_made(expensive):
    pass

@pytest.mark.e2e
def test_whole_command():
    work()

@pytest.mark.nightly
def test_many_cases():
    work()
"""


def test_only_a_long_test_of_the_default_tier_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeini("[pytest]\nmarkers =\n    e2e\n    nightly\n")
    pytester.makepyfile(SOURCE)
    with monkeypatch.context() as patch:  # not for this test itself
        patch.setattr(guard, "SECONDS", 0.2)
        result = pytester.runpytest_inprocess("-p", "guard", "-m", guard.DEFAULT_TIER)
        later = pytester.runpytest_inprocess("-p", "guard", "-m", "")
    result.assert_outcomes(passed=3, failed=1, deselected=2)
    later.assert_outcomes(passed=6)
    result.stdout.re_match_lines(
        [r".*::test_long took 0\.\d seconds; expected at most 0\.2 in the default tier\. Make it cheaper, or mark it.*"]
    )
