"""Several processes that compute as one: how they start, and how they agree.

All run the same program on the same steps. What may differ between them (a clock, a signal, what a file system says)
is asked of one of them or of all, so that they take the same way; one that took another would leave the others waiting
inside a sum for ever. With one process all of this costs nothing."""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rap_jax._runtime.integrity import difference
from rap_jax.config import ProcessConfig

T = TypeVar("T")


def start_processes(config: ProcessConfig) -> None:
    """Connects this process to the others; to be called before anything uses JAX. One process does nothing.

    If not all have come in time, it says so and ends this process: JAX would abort it a moment later.

    Raises:
      ValueError: no cluster is found, or the coordinator cannot be reached.
    """
    if not config.several:
        return
    address, seconds = config.coordinator_address, config.initialization_timeout
    total = config.num_processes if address else None
    where = f"the {total} processes at {address}" if address else "the processes of this cluster"
    me = "This process" if config.process_id is None else f"Process {config.process_id}"
    late = f"{me} has waited {seconds} seconds for {where}, and not all have come; {_hint(address)}."
    print(f"{me} waits for {where}, {seconds} seconds at most.", file=sys.stderr, flush=True)
    try:
        with _time_limit(seconds, late):
            # JAX's own limit is later, since its words are those of an abort.
            jax.distributed.initialize(address or None, total, config.process_id, initialization_timeout=seconds + 30)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{me} cannot join {where} ({_line(error)}); {_hint(address)}.") from error


def _hint(address: str) -> str:
    if address:
        return (
            "start all of them with the same --coordinator_address, which has to be free on the host of process 0, and "
            "each with a --process_id of its own"
        )
    return (
        "Slurm, Open MPI, GKE or Cloud TPU is expected; elsewhere give --coordinator_address, --num_processes and "
        "--process_id"
    )


@contextlib.contextmanager
def _time_limit(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with an error unless the block is left in time."""

    def end() -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread is inside of a call that cannot be interrupted

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def require_same(settings: Mapping[str, Any]) -> None:
    """Refuses processes that were started with different settings; called by all, at the same point.

    Their sums would be of different things: a wrong result, or one that waits for ever. Settings are nested, and what
    JSON can hold.

    Raises:
      ValueError: in every process, if one differs from process 0; there with the settings that do.
    """
    if num_processes() == 1:
        return
    mine = json.loads(json.dumps(settings))
    first = from_first(lambda: mine)
    answers = multihost_utils.process_allgather(np.asarray(mine != first, np.int32))
    others = [str(number) for number, differs in enumerate(np.ravel(answers)) if differs]
    if not others:
        return
    names = {"of_before": "in process 0", "of_now": f"in process {jax.process_index()}"}
    lines = difference(first, mine, **names) or f"  process {', '.join(others)} says which"
    raise ValueError(
        f"Process {', '.join(others)} of {num_processes()} was started with other settings than process 0:\n{lines}\n"
        "Nothing was computed. Start all processes with the same flags."
    )


def num_processes() -> int:
    """How many compute as one; asks JAX only if they were started, since the question would start its devices."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is process 0, the one that writes."""
    return num_processes() == 1 or jax.process_index() == 0


def from_first(function: Callable[[], T]) -> T:
    """What `function`, run by process 0 alone, returns, in all of them; called by all, at the same point.

    It is what JSON can hold.

    Raises:
      ValueError, OSError: `function` raised one. The others raise a `ValueError` of the same words.
    """
    if num_processes() == 1:
        return function()
    said, raised = dict[str, Any](), None
    if is_first():
        try:
            said = {"value": function()}
        except (ValueError, OSError) as error:
            said, raised = {"error": str(error)}, error
    said = json.loads(_broadcast(json.dumps(said).encode()))
    if raised is not None:
        raise raised
    if "error" in said:
        raise ValueError(said["error"])
    value: T = said["value"]
    return value


def first_before_others(function: Callable[[], T]) -> T:
    """`function()` of every process, in process 0 before the others: what it leaves on a shared disk, they find.

    Raises:
      ValueError: it raised one, here or in process 0.
    """
    if num_processes() == 1:
        return function()
    mine: list[T] = []
    from_first(lambda: mine.append(function()))
    return mine[0] if is_first() else function()


def leave_the_others(error: Exception) -> NoReturn:
    """Says that a computation over several processes failed, as when one of them has died, and ends this one."""
    print(
        f"error: process {jax.process_index()} of {num_processes()} failed in what all of them compute "
        f"({_line(error)}). Unless that names another cause, one of them has ended or cannot be reached. "
        "What was saved stays: start all processes again with the same command to go on.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # an ordinary end would wait minutes for the one that is gone


def largest(*numbers: int) -> tuple[int, ...]:
    """Of each number the largest that any process gives; called by all, at the same point."""
    if num_processes() == 1:
        return numbers
    given = multihost_utils.process_allgather(np.asarray(numbers, np.int32))
    return tuple(int(number) for number in np.asarray(given).reshape(-1, len(numbers)).max(0))


class PeriodicLargest:
    """`largest`, called after each of many steps, and asked about once a second: an answer waits for all devices.

    The steps between two questions follow from the answers, so all processes ask after the same steps. The first ones
    come after 1, 2, 4, ... steps, since one step may be dispatched long before it is computed.
    """

    def __init__(self, seconds: float = 1.0):
        self._seconds, self._interval, self._num_steps, self._asked = seconds, 1, 0, time.monotonic()

    def __call__(self, *numbers: int, now: bool = False) -> tuple[int, ...]:
        """The largest numbers, or zeros between two questions; one process has its answer at once.

        Args:
          now: asks, whatever the interval; the same in all processes.
        """
        self._num_steps += 1
        if num_processes() == 1:
            return numbers
        if self._num_steps < self._interval and not now:
            return (0,) * len(numbers)
        steps_in_time = self._num_steps * self._seconds / max(time.monotonic() - self._asked, 1e-6)
        most = min(2 * self._interval, int(min(steps_in_time, 2**30)))
        # Of the intervals the shortest: the slowest process sets the pace.
        *answers, negative = largest(*numbers, -max(1, most))
        self._interval, self._num_steps, self._asked = -negative, 0, time.monotonic()
        return tuple(answers)


def _broadcast(content: bytes) -> bytes:
    """What process 0 gives."""
    (size,) = largest(len(content) if is_first() else 0)
    padded = np.zeros(size, np.uint8)
    if is_first():
        padded[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
