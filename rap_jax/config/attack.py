"""The settings of an attack."""

import dataclasses
import math
from typing import Literal

import numpy as np

from rap_jax.config.checks import require, require_choice, require_positive

Norm = Literal["linf", "l2"]


def check_radius(norm: str, epsilon: float, num_pixels: int) -> None:
    """Refuses a norm or a radius that no attack on images of so many numbers in [0, 1] can have.

    Raises:
      ValueError: names what is wrong.
    """
    require_choice("norm", norm, ("linf", "l2"))
    number = isinstance(epsilon, int | float | np.number)
    require(number, "epsilon", epsilon, "a number, in the units of pixels in [0, 1] (8 / 255, not 8)")
    require_positive("epsilon", epsilon)
    largest = 1.0 if norm == "linf" else math.sqrt(num_pixels)
    hint = f"at most {largest:.4g}, with which any image becomes any other, since pixels are in [0, 1]"
    require(epsilon <= largest, "epsilon", epsilon, hint)


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


def fgsm_attack(norm: Norm, epsilon: float) -> AttackConfig:
    """One step of 1.25 epsilon from a random point of the ball: "fast" adversarial training.

    It costs two passes per update where PGD with k steps costs k + 1. Training with it can fail all at once
    (catastrophic overfitting): the network masks this one step, and its accuracy under PGD falls to zero within an
    epoch. Validation by PGD of several steps shows it, and the model that was best on validation is from before.

    Reference: Wong et al., "Fast is better than free", 2020, https://arxiv.org/abs/2001.03994, algorithm 3, for linf;
    under l2 the step is along the gradient.

    Raises:
      ValueError: an epsilon of 0, or one that `AttackConfig` refuses.
    """
    require_positive("epsilon", epsilon)
    return AttackConfig(norm, epsilon, step_size=1.25 * epsilon, num_steps=1)


def free_attack(norm: Norm, epsilon: float) -> AttackConfig:
    """How the perturbation of free training moves, see `rap_jax.training.step`: from zero, by epsilon at each update.

    Raises:
      ValueError: an epsilon of 0, or one that `AttackConfig` refuses.
    """
    require_positive("epsilon", epsilon)
    return AttackConfig(norm, epsilon, step_size=epsilon, num_steps=1, random_start=False)
