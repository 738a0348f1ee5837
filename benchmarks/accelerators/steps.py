"""Training steps in images per second, against PyTorch on the same card, in turn and each in a process of its own."""

import contextlib
import dataclasses
import importlib.util
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.accelerators.process import Process, RowError
from benchmarks.accelerators.session import Bench, Row, Settings
from benchmarks.rows import Row as StepRow
from benchmarks.turns import Times, in_turn
from benchmarks.worker import Answer

# Ways of PyTorch; all have the attack in evaluation mode and no forward pass on clean images, as rap_jax has it.
PYTORCH_WAYS = ("eager_tf32", "bf16_channels_last", "compiled_bf16_channels_last")
PYTORCH_MISSING = "PyTorch is not installed"
JAX_WORKER, PYTORCH_WORKER = "benchmarks.accelerators.step_worker", "benchmarks.pytorch.accelerator_step_worker"


class StepCase(NamedTuple):
    """A step. Attributes: row: network, batch and attack; dtype: of rap_jax; minutes: with PyTorch, on an H100."""

    row: StepRow
    dtype: str
    minutes: float


_CASES = (
    StepCase(StepRow("lenet_w1", "lenet_mnist", 1, 128, 10), "float32", 1.2),
    StepCase(StepRow("lenet_w4", "lenet_mnist", 4, 128, 10), "float32", 1.2),
    StepCase(StepRow("lenet_w16", "lenet_mnist", 16, 128, 40), "float32", 1.2),
    StepCase(StepRow("resnet18_w16_batch128", "resnet18", 16, 128, 10), "bfloat16", 2.0),
    StepCase(StepRow("resnet18_w16_batch512", "resnet18", 16, 512, 10), "bfloat16", 2.0),
)
_TINY_CASES = (StepCase(StepRow("lenet_w1", "lenet_mnist", 1, 16, 2), "float32", 1.2),)


def step_cases(settings: Settings) -> tuple[StepCase, ...]:
    """The steps that `steps` and `memory` have."""
    return _TINY_CASES if settings.tiny else _CASES


def step_rows(settings: Settings) -> list[Row]:
    """Rows of the part `steps`."""
    measure = lambda case: lambda bench: measure_steps(bench, case)
    return [Row(f"steps/{case.row.name}", case.minutes, measure(case)) for case in step_cases(settings)]


def has_pytorch() -> bool:
    """Whether PyTorch is installed, without importing it."""
    return importlib.util.find_spec("torch") is not None


def worker_arguments(case: StepCase) -> tuple[str, str]:
    """For `step_worker`."""
    return json.dumps(dataclasses.asdict(case.row)), case.dtype


def measure_steps(bench: Bench, case: StepCase) -> Answer:
    """Images per second of rap_jax and of each way of PyTorch; a way that fails leaves the others."""
    settings, ways = bench.settings, dict[str, Callable[[], Answer]]()
    found: Answer = {"batch_size": case.row.batch_size, "num_steps": case.row.num_steps, "dtype": case.dtype}
    firsts, errors = dict[str, float](), dict[str, str]()
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(bench.process(JAX_WORKER, *worker_arguments(case)))
        firsts["rap_jax"] = ours.ask("steps", count=1, num_ahead=0)["seconds"]
        ways["waited"] = turn(ours, settings.turn_seconds, num_ahead=0)
        ways["pipelined"] = turn(ours, settings.turn_seconds, num_ahead=1)
        for way in PYTORCH_WAYS if has_pytorch() else ():
            try:
                theirs = stack.enter_context(bench.process(PYTORCH_WORKER, worker_arguments(case)[0], way, way=way))
                firsts[way] = theirs.ask("steps", count=1)["seconds"]
                theirs.ask("steps", count=2)  # what PyTorch compiles at the second step, and cuDNN's choice
                ways[way] = turn(theirs, settings.turn_seconds)
            except RowError as error:
                errors[way] = str(error)
        times = in_turn(ways, rounds=settings.rounds, max_tries=1)
    if not has_pytorch():
        errors["pytorch"] = PYTORCH_MISSING
    return found | _speeds(case, times) | {"first_seconds": firsts, "errors": errors}


def turn(process: Process, seconds: float, **arguments: Any) -> Callable[[], Answer]:
    """As many steps as fill a turn."""
    once = process.ask("steps", count=2, **arguments)["seconds"]
    count = max(2, round(seconds / once))
    return lambda: process.ask("steps", count=count, **arguments)


def _speeds(case: StepCase, times: dict[str, Times]) -> Answer:
    speeds = {way: case.row.batch_size / found.median for way, found in times.items()}
    found: Answer = {"images_per_second": speeds, "spread": {way: found.spread for way, found in times.items()}}
    theirs = {way: speeds[way] for way in PYTORCH_WAYS if way in speeds}
    if theirs:
        best = max(theirs, key=lambda way: theirs[way])
        found |= {"pytorch_best": best, "ratio": speeds["pipelined"] / theirs[best]}
        found["ratio_waited"] = speeds["waited"] / theirs[best]
    return found
