"""How a stage is optimised: its length, its optimizer and its learning rate."""

import dataclasses
import math
from typing import Literal

from rap_jax.config.checks import require, require_at_least, require_choice, require_positive

_MOST_EPOCHS = 10**6


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """First-order optimizer of one stage with its learning-rate schedule."""

    name: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    warmup_epochs: float = 0.0
    step_epochs: tuple[float, ...] = ()
    step_factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require_choice("optimizer", self.name, ("adam", "sgd"))
        require_choice("schedule", self.schedule, ("constant", "cosine", "step"))
        require_positive("learning_rate", self.learning_rate)
        require_at_least("warmup_epochs", self.warmup_epochs, 0, " epochs")
        increasing = all(a < b for a, b in zip((0.0, *self.step_epochs), self.step_epochs, strict=False))
        increasing = increasing and all(map(math.isfinite, self.step_epochs))
        require(increasing, "step_epochs", self.step_epochs, "epochs above 0 in rising order, such as 80,150")
        counted = all(epoch <= _MOST_EPOCHS for epoch in self.step_epochs)
        require(counted, "step_epochs", self.step_epochs, f"epochs up to {_MOST_EPOCHS}, whose steps can be counted")
        stepped = self.schedule != "step" or bool(self.step_epochs)
        require(stepped, "step_epochs", self.step_epochs, "at least one epoch when schedule is step")
        require_positive("step_factor", self.step_factor)
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        require_at_least("weight_decay", self.weight_decay, 0)


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of a run. The attack's radius rises linearly from 0 over the first `epsilon_ramp_epochs`.

    A stage of 0 epochs is left out.
    """

    num_epochs: int
    optimizer: OptimizerConfig = OptimizerConfig()
    epsilon_ramp_epochs: float = 0.0

    def __post_init__(self) -> None:
        require(self.num_epochs >= 0, "num_epochs", self.num_epochs, "1 or more epochs, or 0 to leave the stage out")
        require_at_least("epsilon_ramp_epochs", self.epsilon_ramp_epochs, 0, " epochs")
