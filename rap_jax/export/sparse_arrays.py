"""An array with many zeros in fewer bytes: its other values, and where they are.

    dense   as it is
    mask    the values that are not zero, in row order, and one bit for each place (`numpy.packbits`)
    csr     of the array as a matrix [all axes but the last, last axis]: the values, the column of each, and where each
            row begins

`pack` takes the smallest: a mask from 3% of zeros on, CSR from 88% or 94% on (columns of one byte or of two). This
makes files small, not networks fast: what is read back is the dense array, zeros and all, to the last bit.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

Parts = dict[str, np.ndarray]
FORMS = ("dense", "mask", "csr")


def pack(array: np.ndarray) -> tuple[str, Parts]:
    """The form that takes the fewest bytes, and its parts: name -> array; a dense array has the one part ""."""
    packed = {"dense": {"": array}, "mask": _to_mask(array), "csr": _to_csr(array)} if array.ndim else {}
    if not packed:
        return "dense", {"": array}
    size = lambda form: sum(part.nbytes for part in packed[form].values())
    best = min(FORMS, key=size)
    return best, packed[best]


def unpack(form: str, parts: Mapping[str, np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """The array of that shape.

    Raises:
      ValueError: the parts do not fit each other or the shape, or the form is unknown.
    """
    try:
        if form == "dense":
            array = parts[""]
        elif form == "mask":
            array = _from_mask(parts, shape)
        elif form == "csr":
            array = _from_csr(parts, shape)
        else:
            raise ValueError(f"form is {form!r}; expected one of {', '.join(FORMS)}")
    except (KeyError, IndexError) as error:
        raise ValueError(f"its parts do not belong together ({error!r})") from error
    if array.shape != tuple(shape):
        raise ValueError(f"it has shape {list(array.shape)}; expected {list(shape)}")
    return array


def _there(array: np.ndarray) -> np.ndarray:
    """Where something other than zero is, bool; -0.0 is something."""
    return (array != 0) | np.signbit(array)


def _to_mask(array: np.ndarray) -> Parts:
    there = _there(array)
    return {"values": array[there], "mask": np.packbits(there.reshape(-1))}


def _from_mask(parts: Mapping[str, np.ndarray], shape: Sequence[int]) -> np.ndarray:
    values, size = parts["values"], math.prod(shape)
    there = np.unpackbits(parts["mask"], count=size).astype(bool)
    if there.size != size or there.sum() != len(values):
        raise ValueError(f"its mask marks {there.sum()} of {size} values and {len(values)} are there")
    array = np.zeros(size, values.dtype)
    array[there] = values
    return array.reshape(shape)


def _to_csr(array: np.ndarray) -> Parts:
    matrix = array.reshape(-1, array.shape[-1])
    rows, columns = np.nonzero(_there(matrix))
    starts = np.searchsorted(rows, np.arange(len(matrix) + 1))
    narrow = lambda numbers, largest: numbers.astype(np.min_scalar_type(largest))
    return {
        "values": matrix[rows, columns],
        "columns": narrow(columns, matrix.shape[1] - 1),
        "starts": narrow(starts, len(rows)),
    }


def _from_csr(parts: Mapping[str, np.ndarray], shape: Sequence[int]) -> np.ndarray:
    values, columns, starts = parts["values"], parts["columns"], parts["starts"].astype(np.int64)
    counts = np.diff(starts)
    num_rows = math.prod(shape[:-1])
    fits = len(counts) == num_rows and starts[0] == 0 and (counts >= 0).all() and counts.sum() == len(values)
    if not fits or len(columns) != len(values):
        raise ValueError(f"its {len(values)} values have {len(columns)} columns and {len(counts)} rows")
    matrix = np.zeros((num_rows, shape[-1]), values.dtype)
    matrix[np.repeat(np.arange(num_rows), counts), columns] = values
    return matrix.reshape(shape)
