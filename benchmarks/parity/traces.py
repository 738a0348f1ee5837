"""What an attack did, as NumPy arrays with images [N, H, W, C]; the official side and ours write the same kind."""

from typing import NamedTuple

import numpy as np


class LossValues(NamedTuple):
    """A loss and its gradient. Attributes: values: [N]; gradients: by the logits, [N, K]."""

    values: np.ndarray
    gradients: np.ndarray


class Path(NamedTuple):
    """One start of APGD with T steps; query 0 is the start.

    Attributes:
      steps: numbers of the queries whose images are kept, int [S]; here all of them, in the reference file some.
      images: asked about in those queries, [S, N, H, W, C].
      losses: of every query, [T + 1, N].
      wrong: whether its image is misclassified, bool [T + 1, N].
      broken: whether the attack says so of any, bool [N].
      best_loss: the highest, as the attack has it, [N].
    """

    steps: np.ndarray
    images: np.ndarray
    losses: np.ndarray
    wrong: np.ndarray
    broken: np.ndarray
    best_loss: np.ndarray


class Nearest(NamedTuple):
    """What FAB found from R starts. Attributes: images: [R, N, H, W, C], clean where nothing was; broken: [R, N]."""

    images: np.ndarray
    broken: np.ndarray


class Search(NamedTuple):
    """How Square ended. Attributes: images: the best, [N, H, W, C]; num_queries: int [N]; broken: bool [N]."""

    images: np.ndarray
    num_queries: np.ndarray
    broken: np.ndarray
