"""Ctrl-C and SIGTERM as a flag that the training loop looks at between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from rap_jax._runtime.processes import largest


class Interrupted(Exception):  # noqa: N818  not an error: the run goes on with the next call
    """The run stopped because it was asked to; its state is saved."""

    def __init__(self, signal_number: int, where: str):
        self.signal_number = signal_number
        self.where = where  # the step or stage that was reached, in a few words
        super().__init__(f"stopped by {signal.Signals(signal_number).name} {where}")


class Interrupt:
    """`requested` is the number of the first signal that came, or None."""

    def __init__(self) -> None:
        self.requested: int | None = None

    def stop_if_requested(self, where: str) -> None:
        """Raises `Interrupted` if a signal has come, to any process; called by all of them, at the same point."""
        (number,) = largest(self.requested or 0)
        if number:
            raise Interrupted(number, where)


@contextlib.contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Turns the first SIGINT or SIGTERM into a flag; a second one acts as if nobody had caught the first.

    Python lets only the main thread catch signals; in another one nothing is caught.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        interrupt.requested = number
        restore()

    for number in previous:
        signal.signal(number, handle)
    try:
        yield interrupt
    finally:
        restore()
