"""The cost of a network, dense, pruned and compacted: parameters, multiply-adds, bytes, memory and time.

    cost = measure_cost(model, weights, device=jax.devices()[0])
    cost["forms"]["compacted"]["multiply_adds"]
    print(cost_table(cost))

`dense` has the original shapes, with random numbers of the size of the other weights in place of zeros; `pruned` has
the zeros; `compacted` has only the channels that affect the logits. Dense and pruned are one program with other numbers
in it, so their memory is the same, and their times differ by chance alone.
"""

import functools
import gzip
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rap_jax._runtime.devices import usable_cores
from rap_jax._runtime.integrity import as_npz, named_leaves
from rap_jax._runtime.text import as_table
from rap_jax.compaction.compact import compact
from rap_jax.compaction.multiply_adds import MultiplyAdds, count_multiply_adds
from rap_jax.models import Model, num_params
from rap_jax.models.model import Weights

FORMS = ("dense", "pruned", "compacted")
BATCH_SIZES = (1, 64)
# Each round runs every form once. At most `_MAX_ROUNDS`, and no new one after `_SECONDS` and `_MIN_ROUNDS`.
_MAX_ROUNDS = 50
_MIN_ROUNDS = 3
_SECONDS = 2.0

_Forward = Callable[[], Any]


class NetworkForm(NamedTuple):
    """A network in one of the three forms."""

    model: Model
    weights: Weights  # of that model, numpy arrays


def forms_of(model: Model, weights: Weights) -> tuple[dict[str, NetworkForm], str]:
    """The forms by name, of weights after the cut, and why there is no compacted one, '' if there is one."""
    weights = jax.tree.map(np.asarray, weights)
    # Both are one model, so that their program is compiled once.
    forms = {"dense": NetworkForm(model, _without_zeros(weights)), "pruned": NetworkForm(model, weights)}
    try:
        small = compact(model, *weights)
    except ValueError as error:  # nothing would be left of a layer
        return forms, str(error)
    return forms | {"compacted": NetworkForm(small.model, small.weights)}, ""


def file_sizes(weights: Weights) -> tuple[int, int]:
    """Bytes of an `.npz` file of the weights, with the statistics of BatchNorm, and of that file gzipped."""
    content = as_npz({path: np.asarray(leaf) for path, leaf in named_leaves(weights)})
    return len(content), len(gzip.compress(content, compresslevel=6))


def _without_zeros(weights: Weights) -> Weights:
    generator = np.random.default_rng(0)

    def fill(leaf: Any) -> np.ndarray:
        kept = leaf[leaf != 0]
        scale = float(np.sqrt(np.mean(np.square(kept)))) if kept.size else 0.01
        drawn = scale * generator.choice([-1, 1], leaf.shape) * generator.uniform(0.1, 1, leaf.shape)
        return np.where(leaf == 0, drawn, leaf).astype(leaf.dtype)

    return weights._replace(params=jax.tree.map(fill, weights.params))


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
        found[name] = _count(form)
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


def multiply_adds_of(form: NetworkForm) -> MultiplyAdds:
    """Of one image."""
    model = form.model if form.model.remake is None else form.model.replace(implementation="xla")
    return count_multiply_adds(model.logits, form.weights, (1, *model.input_shape))


def _count(form: NetworkForm) -> dict[str, Any]:
    multiply_adds, (file_bytes, gzipped_bytes) = multiply_adds_of(form), file_sizes(form.weights)
    return {
        "parameters": num_params(form.weights.params),
        "nonzero_parameters": sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(form.weights.params)),
        "multiply_adds": multiply_adds.all,
        "effective_multiply_adds": multiply_adds.effective,
        "file_bytes": file_bytes,
        "gzipped_bytes": gzipped_bytes,
        "peak_bytes": {},
        "seconds": {},
    }


def _programs(
    forms: Mapping[str, NetworkForm], batch_size: int, device: jax.Device, between: Callable[[], None]
) -> tuple[dict[str, _Forward], dict[str, int | None]]:
    """The forms ready to run on random images, and the memory that each needs, in bytes."""
    compiled: dict[Model, Any] = {}
    runs: dict[str, _Forward] = {}
    for name, (model, on_host) in forms.items():
        shape = (batch_size, *model.input_shape)
        images = jax.device_put(np.random.default_rng(0).random(shape, np.float32), device)
        weights = jax.device_put(on_host, device)
        if model not in compiled:
            between()
            compiled[model] = jax.jit(model.logits).lower(weights, images).compile()
        runs[name] = functools.partial(compiled[model], weights, images)
    return runs, {name: _peak_bytes(compiled[form.model]) for name, form in forms.items()}


def _peak_bytes(program: Any) -> int | None:
    memory = program.memory_analysis()
    if memory is None:
        return None
    parts = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes)
    return int(sum(parts)) - int(memory.alias_size_in_bytes)


def _median_seconds(runs: Mapping[str, _Forward], between: Callable[[], None]) -> dict[str, float]:
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


# Title, key, unit and format of a row.
_ROWS = (
    ("Parameters", "parameters", 1, ",.0f"),
    ("of these not zero", "nonzero_parameters", 1, ",.0f"),
    ("Multiply-adds of an image", "multiply_adds", 1, ",.0f"),
    ("of these not with a zero", "effective_multiply_adds", 1, ",.0f"),
    ("File, kB", "file_bytes", 1e3, ",.1f"),
    ("gzipped, kB", "gzipped_bytes", 1e3, ",.1f"),
)
_ROWS_OF_BATCH_SIZE = (
    ("Memory at batch {}, MB", "peak_bytes", 1e6, ",.2f"),
    ("Time at batch {}, ms", "seconds", 1e-3, ",.3f"),
)
_NOTES = (
    "Dense: the shapes of training, without a zero. Pruned: the same shapes, with the zeros. Compacted: without the "
    "filters and neurons that cannot affect the logits, the same function.",
    "Counted for one image: convolutions and matrix products, taps in the padding too. File: the weights as float32 "
    "arrays (.npz).",
    "Memory: arguments, temporaries and outputs of the compiled program. Dense and pruned are one program, which "
    "multiplies zeros like other numbers: what their times differ by is chance.",
)


def cost_table(cost: dict[str, Any]) -> str:
    """Markdown of what `measure_cost` returns, with a note on what each line is."""
    measured = f"Memory and time: {cost['device']}; all forms in turn, median. Other work on the machine counts too."
    notes = [*_NOTES, measured]
    if cost["refused"]:
        notes.append(f"There is no compacted form: {cost['refused']}")
    header = ("", *(form.capitalize() for form in FORMS), "Compacted / dense")
    return "\n\n".join((as_table(header, list(_rows(cost))), "\n".join(f"- {note}" for note in notes)))


def _rows(cost: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    forms = [cost["forms"].get(form, {}) for form in FORMS]
    for title, key, unit, number in _ROWS:
        yield _row(title, [form.get(key) for form in forms], unit, number)
    for title, key, unit, number in _ROWS_OF_BATCH_SIZE:
        for size in cost["batch_sizes"]:
            yield _row(title.format(size), [form.get(key, {}).get(str(size)) for form in forms], unit, number)


def _row(title: str, values: list[float | None], unit: float, number: str) -> tuple[str, ...]:
    cells = ("-" if value is None else format(value / unit, number) for value in values)
    dense, _, compacted = values
    return (title, *cells, f"{compacted / dense:.3f}" if dense and compacted else "-")
