"""Processes that measure: an error, a crash or a hang in one of them ends a row, and the next row goes on.

    with bench.process("benchmarks.accelerators.step_worker", "{...}") as process:     # the parent
        answer = process.ask("steps", count=3)

    serve_object(lambda: Steps(...), "steps", "memory")                                # the worker

The object is made at the first request. What the process prints goes to a log file, whose end is the error of a process
that died.
"""

import contextlib
import functools
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.worker import Answer, Worker, serve

MAX_ERROR = 2000
# JAX would take three quarters of the memory at its start, and the other framework works on the same card.
_ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class RowError(Exception):
    """A row cannot be measured; the text says why."""


def error_text(error: Exception) -> str:
    """What stands in the row: the text of a `RowError`, or else kind and text; the first 2,000 characters."""
    text = str(error) if isinstance(error, RowError) else f"{type(error).__name__}: {error}"
    return text[:MAX_ERROR]


class Process:
    """A worker of `serve_object`, for a `with` block.

    Args:
      module, arguments: what runs in it.
      log: file that gets what it prints.
      deadline: of `time.monotonic`, when it is killed.
      environment: further variables.
    """

    def __init__(
        self, module: str, *arguments: str, log: Path, deadline: float, environment: Mapping[str, str] | None = None
    ):
        self._module, self._log, self._deadline = module, log, deadline
        self._file = log.open("w")
        variables = _ENVIRONMENT | dict(environment or {})
        self._worker = Worker(module, *arguments, environment=variables, stderr=self._file)

    def ask(self, request: str, **arguments: Any) -> Answer:
        """Waits for the answer, until the deadline.

        Raises:
          RowError: the request raised, or the process has ended, by itself or at the deadline.
        """
        timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), self._worker.kill)
        timer.daemon = True
        timer.start()
        try:
            answer = self._worker.ask(request, **arguments)
        except RuntimeError as error:
            late = time.monotonic() >= self._deadline
            reason = "was stopped when the time of the row was up" if late else "ended"
            raise RowError(f"{self._module} {reason}. {log_end(self._log)}") from error
        finally:
            timer.cancel()
        if "error" in answer:
            raise RowError(answer["error"])
        return answer

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._worker.kill()
        with contextlib.suppress(OSError):
            self._worker.close()
        self._file.close()


def log_end(path: Path) -> str:
    """The end of a log, short enough to be part of an error."""
    text = path.read_text(errors="replace").strip()
    return text[-(MAX_ERROR - 200) :]


def serve_object(make: Callable[[], Any], *methods: str) -> None:
    """Answers requests by methods of one object; what they raise is an answer too."""
    made = functools.cache(make)

    def answer(method: str, **arguments: Any) -> Answer:
        try:
            return getattr(made(), method)(**arguments)
        except Exception as error:
            traceback.print_exc()
            return {"error": error_text(error)}

    serve({method: functools.partial(answer, method) for method in methods})
