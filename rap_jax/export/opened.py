"""A network from a file, whatever its format, ready to be asked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class OpenFile(NamedTuple):
    """A network from a file.

    Attributes:
      logits_fn: images float32 [N, H, W, C] in [0, 1] -> logits [N, K], numpy arrays.
      input_shape: (H, W, C).
      num_classes: K.
      metadata: as `metadata.describe` made them; {} in a file from elsewhere.
    """

    logits_fn: Callable[[np.ndarray], np.ndarray]
    input_shape: tuple[int, int, int]
    num_classes: int
    metadata: dict[str, Any]
