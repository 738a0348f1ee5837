"""Peak memory of the card in a training step: of rap_jax and of each way of PyTorch, each in a process of its own.

rap_jax is measured twice. The first process compiles, and XLA tries algorithms on the card meanwhile; the second one
takes its programs from a cache on disk, as a later run does, so its peak is that of training.
"""

import tempfile

from benchmarks.accelerators.process import RowError
from benchmarks.accelerators.session import Bench, Row, Settings
from benchmarks.accelerators.steps import (
    JAX_WORKER,
    PYTORCH_MISSING,
    PYTORCH_WAYS,
    PYTORCH_WORKER,
    StepCase,
    has_pytorch,
    step_cases,
    worker_arguments,
)
from benchmarks.worker import Answer

_NUM_STEPS = 3


def memory_rows(settings: Settings) -> list[Row]:
    """Rows of the part `memory`."""
    measure = lambda case: lambda bench: measure_memory(bench, case)
    return [Row(f"memory/{case.row.name}", case.minutes, measure(case)) for case in step_cases(settings)]


def measure_memory(bench: Bench, case: StepCase) -> Answer:
    """Peaks in MB by way; None where the device does not tell. A way of PyTorch that fails leaves the others."""
    peaks, errors = dict[str, float | None](), dict[str, str]()
    with tempfile.TemporaryDirectory() as cache:
        for way in ("rap_jax_compiling", "rap_jax"):
            with bench.process(JAX_WORKER, *worker_arguments(case), cache, way=way) as ours:
                ours.ask("steps", count=_NUM_STEPS, num_ahead=1)
                peaks[way] = ours.ask("memory")["megabytes"]
    for way in PYTORCH_WAYS if has_pytorch() else ():
        try:
            with bench.process(PYTORCH_WORKER, worker_arguments(case)[0], way, way=way) as theirs:
                theirs.ask("steps", count=_NUM_STEPS)
                peaks[way] = theirs.ask("memory")["megabytes"]
        except RowError as error:
            errors[way] = str(error)
    if not has_pytorch():
        errors["pytorch"] = PYTORCH_MISSING
    return {"batch_size": case.row.batch_size, "dtype": case.dtype, "megabytes": peaks, "errors": errors}
