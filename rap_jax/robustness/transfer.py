"""Transferred images: made by PGD on one network, predicted by another (Ye et al., 2019, Table 6).

Where they break what attacks on the network itself have left, its gradients are masked.
"""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from rap_jax.attacks.stepwise_pgd import Pgd
from rap_jax.auto_attack.programs import AttackPrograms, Examples
from rap_jax.config import AttackConfig
from rap_jax.folder import write_atomically
from rap_jax.robustness.predictor import Predictor
from rap_jax.unreadable import unreadable


class Transferred(NamedTuple):
    """What the images of one source did.

    Attributes:
      broken: the other network misclassifies the image of some restart, bool [N].
      adversarial: that image, of the first such restart; the clean one where there is none, float32 [N, H, W, C].
      source_right: the source is right on the clean image, bool [N].
      source_robust: and on those of all restarts: what PGD leaves of the network that it attacks, bool [N].
    """

    broken: np.ndarray
    adversarial: np.ndarray
    source_right: np.ndarray
    source_robust: np.ndarray


def transfer(
    source: Predictor,
    target: Predictor,
    attack: AttackConfig,
    key: jax.Array,
    on_restart: Callable[[int], None] = lambda done: None,
) -> Transferred:
    """Attacks every image of the sample on `source` and shows what comes out to `target`.

    It is the last step of each restart that is shown, whether or not it breaks the source.

    Args:
      source, target: networks on the same sample.
      attack: PGD on the cross-entropy; every restart counts.
      key: typed PRNG key.
      on_restart: called with the number of restarts done after each of them.
    """
    one_start = Pgd(attack.epsilon, attack.step_size, attack.norm, num_steps=attack.num_steps)
    programs = source.programs.of_attack(one_start, key)
    images = target.sample.images
    source_right = ~source.predict(images).wrong
    found = Transferred(np.zeros(len(images), bool), images.copy(), source_right, source_right.copy())
    for restart in range(attack.num_restarts):
        perturbed = _perturb(source, programs, attack.num_steps, restart)
        new = target.predict(perturbed).wrong & ~found.broken
        found.adversarial[new] = perturbed[new]
        found.broken[new] = True
        found.source_robust[source.predict(perturbed).wrong] = False
        on_restart(restart + 1)
    return found


def _perturb(source: Predictor, programs: AttackPrograms, num_steps: int, restart: int) -> np.ndarray:
    """Where PGD on the source ends, for all images."""
    sample, parts = source.sample, []
    for numbers, count in source.batches():
        restarts = np.full_like(numbers, restart)
        examples = Examples(sample.images[numbers], sample.labels[numbers], numbers, restarts)
        state = programs.fill(None, examples, np.ones(len(numbers), bool))
        for _ in range(num_steps // programs.steps):
            state, _ = programs.advance(state, numbers)
            source.on_batch()
        parts.append(np.asarray(state.current)[:count])
    return np.concatenate(parts)


def save(path: Path, found: Transferred, seconds: float) -> None:
    """Writes it, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, seconds=seconds, **found._asdict())
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> tuple[Transferred, float]:
    """Reads what `save` wrote, with the seconds.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:  # numpy leaves a damaged file open
            return Transferred(*(found[name] for name in Transferred._fields)), float(found["seconds"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise unreadable(path, error, "delete it to have it made again") from error
