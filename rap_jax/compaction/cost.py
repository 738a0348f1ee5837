"""The cost of a network, dense, pruned and compacted: parameters, multiply-adds, bytes, memory and time.

    cost = measure_cost(model, weights, device=jax.devices()[0])
    cost["forms"]["compacted"]["multiply_adds"]
    print(cost_table(cost))

`dense` has the original shapes, with random numbers of the size of the other weights in place of zeros; `pruned` has
the zeros; `compacted` has only the channels that affect the logits. Dense and pruned are one program with other numbers
in it, so their memory is the same, and their times differ by chance alone.
"""

import gzip
import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rap_jax._runtime.devices import usable_cores
from rap_jax._runtime.integrity import named_leaves
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


class FileSize(NamedTuple):
    """Bytes of a file."""

    plain: int
    gzipped: int


def forms_of(model: Model, weights: Weights) -> tuple[dict[str, NetworkForm], str]:
    """The forms by name, and why there is no compacted one, '' if there is one.

    Args:
      model: of `create_model`.
      weights: after the cut, arrays of any kind.
    """
    weights = jax.tree.map(np.asarray, weights)
    # Both are one model, so that their program is compiled once.
    forms = {"dense": NetworkForm(model, _without_zeros(weights)), "pruned": NetworkForm(model, weights)}
    try:
        small = compact(model, *weights)
    except ValueError as error:  # nothing would be left of a layer
        return forms, str(error)
    return forms | {"compacted": NetworkForm(small.model, Weights(small.params, small.batch_stats))}, ""


def file_size(weights: Weights) -> FileSize:
    """Of the weights, with the statistics of BatchNorm, as float32 arrays in an `.npz` file."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {path: np.asarray(leaf) for path, leaf in named_leaves(weights)}
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    return FileSize(len(content), len(gzip.compress(content, compresslevel=6)))


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
    forms: Mapping[str, NetworkForm], batch_size: int, device: jax.Device, between: Callable[[], None]
) -> tuple[dict[str, _Forward], dict[str, int | None]]:
    """The forms ready to run on random images, and the memory that each needs, in bytes."""
    compiled: dict[int, Any] = {}
    runs: dict[str, _Forward] = {}
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
    return jax.jit(model.logits).lower(weights, images).compile()


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


_COUNTS = {
    "parameters": "Parameters",
    "nonzero_parameters": "of these not zero",
    "multiply_adds": "Multiply-adds of an image",
    "effective_multiply_adds": "of these not with a zero",
}
_SIZES = {"file_bytes": "File, kB", "gzipped_bytes": "gzipped, kB"}
_NOTES = (
    "Dense: the shapes of training, without a zero. Pruned: the same shapes, with the zeros. Compacted: without the "
    "filters and neurons that cannot affect the logits, the same function.",
    "Counted for one image: convolutions and matrix products, taps in the padding too. File: the weights as float32 "
    "arrays (.npz).",
    "Memory: arguments, temporaries and outputs of the compiled program. Dense and pruned are one program, which "
    "multiplies zeros like other numbers: what their times differ by is chance.",
)


def cost_table(cost: dict[str, Any]) -> str:
    """Markdown, with a note on what each line is.

    Args:
      cost: as `measure_cost` returns it.
    """
    measured = f"Memory and time: {cost['device']}; all forms in turn, median. Other work on the machine counts too."
    notes = [*_NOTES, measured]
    if cost["refused"]:
        notes.append(f"There is no compacted form: {cost['refused']}")
    header = ("", *(form.capitalize() for form in FORMS), "Compacted / dense")
    return "\n\n".join((as_table(header, list(_rows(cost))), "\n".join(f"- {note}" for note in notes)))


def _rows(cost: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, title in _COUNTS.items():
        yield _row(cost, title, key, ",.0f")
    for key, title in _SIZES.items():
        yield _row(cost, title, key, ",.1f", unit=1e3)
    for batch_size in cost["batch_sizes"]:
        yield _row(cost, f"Memory at batch {batch_size}, MB", "peak_bytes", ",.2f", unit=1e6, batch_size=batch_size)
    for batch_size in cost["batch_sizes"]:
        yield _row(cost, f"Time at batch {batch_size}, ms", "seconds", ",.3f", unit=1e-3, batch_size=batch_size)


def _row(
    cost: dict[str, Any], title: str, key: str, number: str, *, unit: float = 1.0, batch_size: int | None = None
) -> tuple[str, ...]:
    values = []
    for form in FORMS:
        value = cost["forms"].get(form, {}).get(key)
        values.append(value.get(str(batch_size)) if isinstance(value, dict) else value)
    cells = ("-" if value is None else format(value / unit, number) for value in values)
    dense, _, compacted = values
    return (title, *cells, f"{compacted / dense:.3f}" if dense and compacted else "-")
