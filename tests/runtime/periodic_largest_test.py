"""Several processes ask each other after the same steps, about once a second; one process has its answer at once."""

import pytest

from rap_jax._runtime import processes
from rap_jax._runtime.processes import PeriodicLargest


class Clock:
    """Of a process whose steps take so many seconds each."""

    def __init__(self, seconds: float):
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        return self.now


def steps_asked(
    monkeypatch: pytest.MonkeyPatch, *, seconds: float, others: int = 2**30, num_steps: int = 400
) -> list[int]:
    """After which steps a process asks; the slowest of the others wants to be asked after `others` steps."""
    clock, asked = Clock(seconds), list[int]()

    def largest(*numbers: int) -> tuple[int, ...]:
        asked.append(number)
        return (*numbers[:-1], max(numbers[-1], -others))

    monkeypatch.setattr(processes, "num_processes", lambda: 2)
    monkeypatch.setattr(processes, "largest", largest)
    monkeypatch.setattr(processes.time, "monotonic", clock)
    ask = PeriodicLargest()
    for number in range(1, num_steps + 1):
        clock.now += seconds
        answers = ask(number, 0, now=number == num_steps)
        assert answers == ((number, 0) if number in asked else (0, 0))
    return asked


def test_questions_become_as_rare_as_one_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_asked(monkeypatch, seconds=0.0625) == [1, 3, 7, 15, *range(31, 400, 16), 400]


def test_slow_steps_are_followed_by_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_asked(monkeypatch, seconds=1.5, num_steps=9) == list(range(1, 10))


def test_the_slowest_process_sets_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_asked(monkeypatch, seconds=0.001, others=4, num_steps=12) == [1, 3, 7, 11, 12]


def test_one_process_has_its_answer_after_each_step() -> None:
    ask = PeriodicLargest()
    assert [ask(number, 0) for number in range(5)] == [(number, 0) for number in range(5)]
