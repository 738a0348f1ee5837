"""The settings of an attack."""

import dataclasses
import math
from typing import Literal

from rap_jax.config.checks import require, require_choice, require_positive

Norm = Literal["linf", "l2"]


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """A projected-gradient attack. `epsilon` and `step_size` are in input units, for inputs in [0, 1]."""

    norm: Norm = "linf"
    epsilon: float = 0.3
    step_size: float = 0.01
    num_steps: int = 40
    num_restarts: int = 1
    random_start: bool = True

    def __post_init__(self) -> None:
        require_choice("norm", self.norm, ("linf", "l2"))
        require(math.isfinite(self.epsilon) and self.epsilon >= 0, "epsilon", self.epsilon, "a radius of 0 or more")
        if self.norm == "linf":
            hint = "at most 1, since pixels are in [0, 1] (write 8/255, not 8)"
            require(self.epsilon <= 1, "epsilon", self.epsilon, hint)
        require_positive("step_size", self.step_size)
        require(self.num_steps >= 0, "num_steps", self.num_steps, "0 or more attack steps")
        require(self.num_restarts >= 1, "num_restarts", self.num_restarts, "1 or more restarts")
        deterministic = self.num_restarts > 1 and not self.random_start
        require(not deterministic, "num_restarts", self.num_restarts, "1 when random_start is off: all would be equal")
