"""Runs one attack on many examples through rows of slots that are kept full.

Every (example, start) is a task. A broken example is done; one that has survived a start waits for its next."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from rap_jax._runtime.mesh import MAX_MICROBATCH_SIZE
from rap_jax.config.checks import require
from rap_jax.evaluation.auto_attack.programs import Attacked, AttackPrograms
from rap_jax.evaluation.correctness import Examples

# On a CPU the microbatches of a device are no larger than 32 images; accelerators want more at once.
_SLOTS_PER_CPU, _SLOTS_PER_ACCELERATOR = 64, 512


class Found(NamedTuple):
    """What a look at the slots has shown."""

    broken: np.ndarray  # numbers of examples that have just been broken, int32 [B]
    adversarial: np.ndarray  # their images, [B, ...]
    # Margin and norm of the perturbation of these, [B].
    margin: np.ndarray
    size: np.ndarray
    survived: np.ndarray  # numbers of examples that have survived one more start, int32 [S]


class _Row:
    """Slots whose examples one program attacks."""

    def __init__(self, num_slots: int):
        self.example = np.full(num_slots, -1, np.int32)  # -1: empty
        self.start, self.left = np.zeros(num_slots, np.int32), np.zeros(num_slots, np.int64)
        self.state: Any = None
        self.attacked: Attacked | None = None  # what the last program has found, not looked at yet

    @property
    def numbers(self) -> np.ndarray:
        """Of the examples in the slots, int32 [S]; an empty one holds any."""
        return np.maximum(self.example, 0)


class Slots:
    """Rows of slots for one attack on a whole data set; the devices divide the number of slots of a row.

    While the host looks at one row the device attacks the next one, so that with two it never waits for the host.
    """

    def __init__(
        self,
        programs: AttackPrograms,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        num_rows: int,
        num_slots: int,
        num_steps: int,
        num_starts: int,
    ):
        self._programs, self._images, self._labels = programs, images, labels
        self._num_steps, self._num_starts = num_steps, num_starts
        self._rows = [_Row(num_slots) for _ in range(num_rows)]

    def run(self, examples: np.ndarray, survived: np.ndarray, tell: Callable[[Found], None]) -> None:
        """Attacks until each of the `examples` [M] is broken or has survived every start; tells of every look.

        `survived`, int [M], is how many starts each has survived already.

        Raises:
          ValueError: an adversarial image is outside ball or box, or its logits are NaN; or an attack has met a NaN
            and found nothing.
        """
        waiting = deque(pair for pair in zip(examples, survived, strict=True) if pair[1] < self._num_starts)
        while waiting or any((row.example >= 0).any() for row in self._rows):
            for row in self._rows:
                if row.attacked is not None:
                    tell(self._clear(row, jax.device_get(row.attacked), waiting))
                self._advance(row, waiting)

    def _advance(self, row: _Row, waiting: deque[tuple[int, int]]) -> None:
        """Lets the device go on with a row; does not wait for it."""
        self._fill(row, waiting)
        row.attacked = None
        if (row.example >= 0).any():
            row.state, row.attacked = self._programs.advance(row.state, row.numbers)
            row.left -= self._programs.steps

    def _fill(self, row: _Row, waiting: deque[tuple[int, int]]) -> None:
        """Puts tasks into empty slots, a quarter of the row at a time: a start costs as much as a step of all slots."""
        empty = np.flatnonzero(row.example < 0)
        if not waiting or len(empty) < min(len(waiting), max(1, len(row.example) // 4)):
            return
        taken = empty[: len(waiting)]
        for slot in taken:
            row.example[slot], row.start[slot] = waiting.popleft()
        row.left[taken] = self._num_steps
        numbers = row.numbers
        # A copy: the device may read it after the row has changed.
        examples = Examples(self._images[numbers], self._labels[numbers], numbers, row.start.copy())
        row.state = self._programs.fill(row.state, examples, np.isin(np.arange(len(numbers)), taken))

    def _clear(self, row: _Row, attacked: Attacked, waiting: deque[tuple[int, int]]) -> Found:
        """Empties the slots that are done."""
        active = row.example >= 0
        broken, found = active & attacked.broken, attacked.correctness
        survived = active & ~broken & (row.left <= 0)
        if (broken & ~found.valid).any():
            raise _invalid_images(np.asarray(row.state.adversarial)[broken & ~found.valid])
        if (survived & ~attacked.valid).any():
            raise _invalid_attack(int((survived & ~attacked.valid).sum()))
        images = np.asarray(row.state.adversarial)[broken] if broken.any() else self._images[:0]
        looked = Found(row.example[broken], images, found.margin[broken], found.size[broken], row.example[survived])
        further = zip(row.example[survived], row.start[survived] + 1, strict=True)
        waiting.extend(pair for pair in further if pair[1] < self._num_starts)
        row.example[broken | survived] = -1
        return looked


def num_slots_of(batch_size: int, num_images: int, mesh: jax.sharding.Mesh) -> int:
    """Slots of a row for so many images, a multiple of the devices; a `batch_size` of 0 chooses.

    Raises:
      ValueError: a `batch_size` that is no whole number from 0.
    """
    whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool) and batch_size >= 0
    require(whole, "batch_size", batch_size, "0, which chooses, or 1 or more images")
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    wanted = batch_size or mesh.size * (_SLOTS_PER_CPU if on_cpu else _SLOTS_PER_ACCELERATOR)
    return math.ceil(min(wanted, num_images) / mesh.size) * mesh.size


def even_slots(num_examples: int, num_tasks: int, most: int, num_devices: int, num_rows: int = 1) -> int:
    """How many slots of a row go through so many tasks of equal length with the fewest of them empty in the end.

    An example is in one slot at most. A row has at most `most` slots, a multiple of the devices. They are split among
    the devices, and on each into parts of equal size (`rap_jax._runtime.mesh`).
    """
    rounds = max(1, math.ceil(num_tasks / min(most * num_rows, max(1, num_examples))))
    on_device = max(1, math.ceil(num_tasks / (rounds * num_devices * num_rows)))
    num_parts = math.ceil(on_device / MAX_MICROBATCH_SIZE)
    return min(most, num_devices * num_parts * math.ceil(on_device / num_parts))


def _invalid_images(images: np.ndarray) -> ValueError:
    if not np.isfinite(images).all():
        return ValueError(
            f"{len(images)} adversarial images are NaN: the gradient of the network is NaN or infinite somewhere, and "
            f"its logits are not. Usual causes are sqrt, log or a division at 0; expected a finite gradient everywhere."
        )
    return ValueError(
        f"{len(images)} adversarial images get logits that are NaN or infinite, or are outside ball or box; expected "
        f"none. The weights may be far too large, or the attack is at fault."
    )


def _invalid_attack(number: int) -> ValueError:
    return ValueError(
        f"{number} images have survived an attack that met logits or gradients that are NaN, so they are not known to "
        f"be robust; expected finite ones at every image in [0, 1]. Usual causes are sqrt, log or a division at 0, and "
        f"numbers that overflow."
    )
