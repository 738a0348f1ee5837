"""Several processes that compute as one: how they start, and how they agree.

All run the same program on the same steps. What may differ between them (a clock, a signal, what a file system says)
is asked of one of them or of all, so that they take the same way; one that took another would leave the others waiting
inside a sum for ever. With one process all of this costs nothing.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rap_jax.config import ProcessConfig

T = TypeVar("T")


def start_processes(config: ProcessConfig) -> None:
    """Connects this process to the others; to be called before anything uses JAX. One process does nothing.

    Raises:
      ValueError: no cluster is found, the coordinator cannot be reached, or not all processes come.
    """
    if not config.several:
        return
    address = config.coordinator_address
    try:
        if address:
            jax.distributed.initialize(address, num_processes=config.num_processes, process_id=config.process_id)
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        where = f"the {config.num_processes} processes at {address}" if address else "the processes of this cluster"
        hint = (
            "start all of them with the same --coordinator_address, which has to be free on the host of process 0"
            if address
            else "Slurm, Open MPI, GKE or Cloud TPU is expected; elsewhere give --coordinator_address, "
            "--num_processes and --process_id"
        )
        raise ValueError(f"Process {config.process_id} cannot join {where} ({_line(error)}); {hint}.") from error


def num_processes() -> int:
    """How many compute as one; asks JAX only if they were started, since the question would start its devices."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is process 0, the one that writes."""
    return num_processes() == 1 or jax.process_index() == 0


def from_first(function: Callable[[], T]) -> T:
    """What `function` returns in process 0, in all of them; called by all, at the same point.

    Args:
      function: run by process 0 alone; returns what JSON can hold.

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

    def first() -> None:
        mine.append(function())

    from_first(first)
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


def _broadcast(content: bytes) -> bytes:
    """What process 0 gives."""
    (size,) = largest(len(content) if is_first() else 0)
    padded = np.zeros(size, np.uint8)
    if is_first():
        padded[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
