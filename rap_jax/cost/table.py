"""A network's cost as a table: one column for each form, and what is left of the dense one."""

from collections.abc import Iterator
from typing import Any

from rap_jax.cost.forms import FORMS
from rap_jax.wording import as_table

_COUNTS = {
    "parameters": "Parameters",
    "nonzero_parameters": "of these not zero",
    "multiply_adds": "Multiply-adds of an image",
    "effective_multiply_adds": "of these not with a zero",
}
_SIZES = {"file_bytes": "File, kB", "gzipped_bytes": "gzipped, kB"}
_NOTES = (
    "Dense: the shapes of training, without a zero. Pruned: the same shapes, with the zeros. Compacted: without the "
    "filters and neurons that count for nothing, the same function.",
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
