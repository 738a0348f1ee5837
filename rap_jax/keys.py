"""Random streams of a run: every key is folded from the run's seed, what it is for, and the stage.

Nothing random is carried from step to step, so a resumed run draws what an uninterrupted one would have drawn.
"""

from typing import Literal

import jax

from rap_jax.config import STAGES, Stage

Purpose = Literal["init", "order", "attack", "select", "report", "batch"]
_PURPOSES: tuple[Purpose, ...] = ("init", "order", "attack", "select", "report", "batch")


def stream_key(seed: int, purpose: Purpose, stage: Stage | None = None) -> jax.Array:
    """The typed key of one stream; streams of different purpose or stage are independent."""
    key = jax.random.fold_in(jax.random.key(seed), _PURPOSES.index(purpose))
    return jax.random.fold_in(key, 0 if stage is None else 1 + STAGES.index(stage))
