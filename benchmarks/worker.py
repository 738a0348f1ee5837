"""A process that works on command, so that two frameworks take turns and neither sees the other's memory or threads.

    worker = Worker("benchmarks.pytorch.worker", "lenet_w4", "channels_first")     # the parent
    answer = worker.ask("steps", count=3)
    worker.close()

    serve({"steps": lambda count: {"seconds": ...}})                                # benchmarks/pytorch/worker.py

Requests and answers are lines of JSON. While one worker works the parent waits, and all others sleep.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

Answer = dict[str, Any]

# Threads of a framework spin for a moment after their work; the next turn should not share the cores with them.
_PAUSE_SECONDS = 0.1


class Worker:
    """A Python module that runs as a process of its own and answers requests."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        stderr: IO[str] | None = None,
    ):
        command = [sys.executable, "-m", module, *arguments]
        self._command = " ".join(command)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | dict(environment or {}),
        )

    def ask(self, request: str, **arguments: Any) -> Answer:
        """Waits for the answer.

        Raises:
          RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"request": request} | arguments) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self._command} ended with {self._process.wait()}; its message stands above.")
        time.sleep(_PAUSE_SECONDS)
        return json.loads(line)

    def kill(self) -> None:
        """Ends the process at once; who waits for an answer gets a `RuntimeError`."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process and waits for it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve(answers: Mapping[str, Callable[..., Answer]]) -> None:
    """Answers requests from standard input until it is closed. What the work prints goes to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        arguments = json.loads(line)
        channel.write(json.dumps(answers[arguments.pop("request")](**arguments)) + "\n")
        channel.flush()


def clocked(work: Callable[[], Any], count: int = 1) -> Answer:
    """Runs `work`, which must wait for its result, and returns seconds per run and the processor time of it all."""
    processor, start = time.process_time(), time.perf_counter()
    for _ in range(count):
        work()
    total = time.perf_counter() - start
    return {"seconds": total / count, "total_seconds": total, "processor_seconds": time.process_time() - processor}


def memory() -> Answer:
    """The most memory that this process has held so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # the kernel's own peak of this program, without what its parent held before it began
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return {"megabytes": int(found.split()[1]) / 1024}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"megabytes": peak / 1024 ** (2 if sys.platform == "darwin" else 1)}
