"""The first signal is a request, the second one acts as ever, and afterwards the handlers are those from before."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from rap_jax._runtime.interrupt import Interrupted, catch_signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def caught() -> Iterator[list[int]]:
    """Stands in for whoever handled the signals before, and keeps a lost one from ending pytest."""
    seen: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    yield seen
    for number, old in previous.items():
        signal.signal(number, old)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_is_a_request(caught: list[int], number: int) -> None:
    with catch_signals() as interrupt:
        interrupt.stop_if_requested("nowhere")
        assert interrupt.requested is None
        send(number)
        assert interrupt.requested == number
        assert caught == []
        with pytest.raises(Interrupted) as stopped:
            interrupt.stop_if_requested("in admm after step 3 of 9")
    assert stopped.value.signal_number == number
    assert str(stopped.value) == f"stopped by {signal.Signals(number).name} in admm after step 3 of 9"


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_second_signal_goes_to_the_handler_from_before(caught: list[int], first: int, second: int) -> None:
    with catch_signals() as interrupt:
        send(first)
        send(second)
        assert interrupt.requested == first
        assert caught == [second]


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_restored(caught: list[int], number: int) -> None:
    before = signal.getsignal(number)
    with catch_signals():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before
    with pytest.raises(RuntimeError), catch_signals():
        raise RuntimeError
    assert signal.getsignal(number) is before
    send(number)
    assert caught == [number]


@pytest.mark.e2e
def test_unhandled_second_signals_end_a_process() -> None:
    code = """
import os, signal, sys
from rap_jax._runtime.interrupt import catch_signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell begins with it ignored
with catch_signals() as interrupt:
    for _ in range(2):
        os.kill(os.getpid(), int(sys.argv[1]))
        print(interrupt.requested, flush=True)
"""
    for number in SIGNALS:
        command = [sys.executable, "-c", code, str(int(number))]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.stdout == f"{int(number)}\n"
        assert result.returncode == -number
        assert ("KeyboardInterrupt" in result.stderr) == (number == signal.SIGINT)


def test_ignored_signal_stays_ignored_afterwards(caught: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup; the fixture puts pytest's own back
    with catch_signals() as interrupt:
        send(signal.SIGTERM)
    assert interrupt.requested == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_thread_that_cannot_catch_signals_runs_without() -> None:
    outcome: list[int | Exception | None] = []

    def work() -> None:
        try:
            with catch_signals() as interrupt:
                outcome.append(interrupt.requested)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [None]
