"""What the official code makes of a tiny network, in a file of a few 100 kB, for tests without PyTorch.

    reference = read(path)
    reference.path("linf", "apgd-ce")

The file is written by `benchmarks.pytorch.write_reference`.
"""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import numpy as np

from benchmarks.parity.stream import Stream
from benchmarks.parity.tiny_network import TinyWeights
from benchmarks.parity.traces import LossValues, Nearest, Path, Search

# Attacks break about half of the images.
EPSILONS = {"linf": 0.05, "l2": 0.5}
NUM_STEPS = 100
NUM_QUERIES = 300
# Queries of which the images are kept.
STEPS = np.array([1, 10, 30, 100])
# Of the classes that targeted attacks aim at: APGD-T at the first, FAB-T at all of them.
RANKS = (2, 3)
# Images are kept in 65535ths, which is 8e-6, where the tolerance is 1e-4.
_LEVELS = 65535


class Reference(NamedTuple):
    """The file. Attributes: arrays: by name, such as `linf/apgd-ce/losses`."""

    arrays: Mapping[str, np.ndarray]

    @property
    def weights(self) -> TinyWeights:
        """Of the network."""
        return TinyWeights(*self._leaves("weights", TinyWeights))

    @property
    def images(self) -> np.ndarray:
        """Clean, float32 [N, H, W, C]; all are classified right."""
        return self.arrays["images"].astype(np.float32) / np.float32(255)

    @property
    def labels(self) -> np.ndarray:
        """int32 [N]."""
        return self.arrays["labels"]

    def first(self, norm: str) -> np.ndarray:
        """Where APGD starts, float32 [N, H, W, C]."""
        return self.arrays[f"{norm}/first"]

    def losses(self, name: str) -> LossValues:
        """Of `arrays["logits"]` and `arrays["targets"]`."""
        return LossValues(*self._leaves(f"losses/{name}", LossValues))

    def path(self, norm: str, name: str) -> Path:
        """One start of APGD."""
        found = Path(*self._leaves(f"{norm}/{name}", Path))
        return found._replace(images=found.images / np.float32(_LEVELS))

    def nearest(self, norm: str, name: str) -> Nearest:
        """FAB from all starts."""
        return Nearest(*self._leaves(f"{norm}/{name}", Nearest))

    def search(self, norm: str) -> Search:
        """Square with `stream(norm)`."""
        return Search(*self._leaves(f"{norm}/square", Search))

    def stream(self, norm: str) -> Stream:
        """The random numbers of Square."""
        return Stream(*self._leaves(f"{norm}/stream", Stream))

    def _leaves(self, prefix: str, kind: Any) -> list[np.ndarray]:
        return [self.arrays[f"{prefix}/{field}"] for field in kind._fields]


def read(path: FilePath) -> Reference:
    """Reads the file."""
    with np.load(path, allow_pickle=False) as file:
        return Reference({name: file[name] for name in file.files})


def pack(prefix: str, trace: Any) -> dict[str, np.ndarray]:
    """A trace as arrays of the file; of a path only the images of `STEPS`, and those in 65535ths."""
    if isinstance(trace, Path):
        kept = trace.images[STEPS]
        trace = trace._replace(steps=STEPS, images=np.round(kept * _LEVELS).astype(np.uint16))
    return {f"{prefix}/{field}": np.asarray(value) for field, value in trace._asdict().items()}
