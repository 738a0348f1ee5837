"""Which examples an attack cannot break, found with no more attacks than that takes.

An example that a restart has broken is not attacked again: one error decides. What is left of each batch waits for its
next restart, and batches are filled from all that wait, whatever restart each is at, so only the last ones have gaps.
"""

from collections.abc import Callable

import numpy as np

from rap_jax.config.checks import require

AttackBatch = Callable[[np.ndarray, np.ndarray], np.ndarray]


def find_survivors(
    examples: np.ndarray,
    attack_batch: AttackBatch,
    *,
    num_restarts: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda num_left: None,
) -> np.ndarray:
    """Attacks examples until each is broken or has survived every restart.

    Args:
      examples: numbers of those to attack, int32 [N].
      attack_batch: (examples, restarts), both int32 [batch_size], to whether each is still right, bool [batch_size]. A
        pair is attacked once, but for the gaps of a batch, which repeat its last pair. Whether an example is right must
        not depend on its neighbours in the batch.
      num_restarts: attacks on each example, numbered from 0; 1 or more.
      batch_size: 1 or more.
      on_batch: called after every batch with the number of attacks that there still are if nothing else is broken.

    Returns:
      The examples that survived, int32, in the order of `examples`.

    Raises:
      ValueError: `num_restarts` or `batch_size` is below 1.
    """
    require(num_restarts >= 1, "num_restarts", num_restarts, "1 or more restarts")
    require(batch_size >= 1, "batch_size", batch_size, "1 or more examples")
    survivors: list[np.ndarray] = []
    waiting = np.stack([examples, np.zeros_like(examples)])  # examples, restarts
    while waiting.shape[1]:
        batch, waiting = waiting[:, :batch_size], waiting[:, batch_size:]
        right = attack_batch(*_filled_up(batch, batch_size))[: batch.shape[1]]
        further = batch[:, right] + np.array([[0], [1]], batch.dtype)
        survived = further[1] == num_restarts
        survivors.append(further[0, survived])
        waiting = np.concatenate([waiting, further[:, ~survived]], axis=1)
        on_batch(int((num_restarts - waiting[1]).sum()))
    return examples[np.isin(examples, np.concatenate([examples[:0], *survivors]))]


def _filled_up(batch: np.ndarray, batch_size: int) -> np.ndarray:
    """[2, batch_size]: one shape for all batches, so that an attack is compiled once."""
    return np.pad(batch, ((0, 0), (0, batch_size - batch.shape[1])), mode="edge")
