"""What a network costs in each of its forms: counted where it can be counted, else measured.

    cost = measure_cost(model, weights, device=jax.devices()[0])
    cost["forms"]["compacted"]["multiply_adds"]

The dense and the pruned form are one program with other numbers in it: a zero is multiplied like any other number, so
their memory is the same by construction, and their times differ by chance alone.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rap_jax.cost.forms import Form, file_size, forms_of
from rap_jax.cost.multiply_adds import MultiplyAdds, count_multiply_adds
from rap_jax.devices import usable_cores
from rap_jax.models import Model, num_params
from rap_jax.state import Weights

BATCH_SIZES = (1, 64)
# All forms take their turn in each round; so many rounds, or fewer if they last longer than this.
_MAX_ROUNDS = 50
_MIN_ROUNDS = 3
_SECONDS = 2.0

_Run = Callable[[], Any]


def measure_cost(
    model: Model,
    weights: Weights,
    *,
    device: jax.Device,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Counts and measures.

    Args:
      model: of `create_model`, in the implementation whose time is of interest.
      weights: after the cut.
      device: the one that is measured.
      batch_sizes: images at a time.
      between: called between two parts of the work; may raise to stop it.

    Returns:
      Ready for JSON: {"device", "batch_sizes", "refused", "forms": {"dense", "pruned", "compacted"}}. A form has
      `parameters`, `nonzero_parameters`, `multiply_adds` and `effective_multiply_adds` of one image, `file_bytes` and
      `gzipped_bytes`, and by batch size (as text) `peak_bytes` (arguments, temporaries and outputs of the program; None
      where the compiler does not tell) and `seconds` (median). Without a compacted form `refused` says why.
    """
    forms, refused = forms_of(model, weights)
    found = {}
    for name, form in forms.items():
        between()
        found[name] = _counted(form)
    for batch_size in batch_sizes:
        between()
        runs, peaks = _programs(forms, batch_size, device, between)
        seconds = _median_seconds(runs, between)
        for name, row in found.items():
            row["peak_bytes"][str(batch_size)] = peaks[name]
            row["seconds"][str(batch_size)] = seconds[name]
    return {"device": _in_words(device), "batch_sizes": list(batch_sizes), "refused": refused, "forms": found}


def _in_words(device: jax.Device) -> str:
    """What was measured: a CPU may be taken for several devices, and one of them does not have all of its cores."""
    number = len(jax.devices(device.platform))
    where = f"1 of {number} devices" if number > 1 else "the only device"
    cores = f", {usable_cores()} cores in all" if device.platform == "cpu" else ""
    return f"{device.device_kind} ({device.platform}), {where}{cores}"


def multiply_adds_of(form: Form) -> MultiplyAdds:
    """Of one image."""
    model = form.model if form.model.remake is None else form.model.remake(implementation="xla")
    return count_multiply_adds(_logits_fn(model), form.weights, (1, *model.input_shape))


def _counted(form: Form) -> dict[str, Any]:
    multiply_adds, size = multiply_adds_of(form), file_size(form.weights)
    return {
        "parameters": num_params(form.weights.params),
        "nonzero_parameters": sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(form.weights.params)),
        "multiply_adds": multiply_adds.all,
        "effective_multiply_adds": multiply_adds.effective,
        "file_bytes": size.plain,
        "gzipped_bytes": size.gzipped,
        "peak_bytes": {},
        "seconds": {},
    }


def _programs(
    forms: Mapping[str, Form], batch_size: int, device: jax.Device, between: Callable[[], None]
) -> tuple[dict[str, _Run], dict[str, int | None]]:
    """The forms ready to run on random images, and the memory that each needs, in bytes."""
    compiled: dict[int, Any] = {}
    runs: dict[str, _Run] = {}
    for name, form in forms.items():
        shape = (batch_size, *form.model.input_shape)
        images = jax.device_put(np.random.default_rng(0).random(shape, np.float32), device)
        weights = jax.device_put(form.weights, device)
        if id(form.model) not in compiled:
            between()
            compiled[id(form.model)] = _compile(form.model, weights, images)
        program = compiled[id(form.model)]
        runs[name] = lambda program=program, weights=weights, images=images: program(weights, images)  # type: ignore[misc]
    return runs, {name: _peak_bytes(compiled[id(form.model)]) for name, form in forms.items()}


def _compile(model: Model, weights: Weights, images: jax.Array) -> Any:
    return jax.jit(_logits_fn(model)).lower(weights, images).compile()


def _logits_fn(model: Model) -> Callable[[Weights, jax.Array], jax.Array]:
    return lambda weights, images: model.apply(weights.params, weights.batch_stats, images, False)[0]


def _peak_bytes(program: Any) -> int | None:
    memory = program.memory_analysis()
    if memory is None:
        return None
    parts = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes)
    return int(sum(parts)) - int(memory.alias_size_in_bytes)


def _median_seconds(runs: Mapping[str, _Run], between: Callable[[], None]) -> dict[str, float]:
    for run in runs.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for count in range(_MAX_ROUNDS):
        between()
        if count >= _MIN_ROUNDS and time.perf_counter() - began > _SECONDS:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
