"""What a run is: frozen dataclasses, checked when they are built.

Everything that stays the same during a run is here, and each function of the package gets only the part it
needs. Images and radii are in [0, 1] (an `epsilon` of 8/255 is 0.0314, not 8). Lengths are in epochs or in steps,
as the name says. A bad value raises a `ValueError` that names the value, what was expected and what to do.
"""

import dataclasses
import math
from typing import Any, Literal

Norm = Literal["linf", "l2"]
Stage = Literal["pretrain", "admm", "retrain"]
STAGES: tuple[Stage, ...] = ("pretrain", "admm", "retrain")


def require(condition: bool, name: str, value: Any, expected: str) -> None:
    """Raises a `ValueError` that names the value and what was expected, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name} is {value!r}; expected {expected}.")


def _require_positive(name: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, name, value, "a number above 0")


def _require_at_least(name: str, value: float, least: float, unit: str = "") -> None:
    require(math.isfinite(value) and value >= least, name, value, f"{least} or more{unit}, and finite")


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    require(value in choices, name, value, f"one of {', '.join(choices)}")


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
        _require_choice("norm", self.norm, ("linf", "l2"))
        require(math.isfinite(self.epsilon) and self.epsilon >= 0, "epsilon", self.epsilon, "a radius of 0 or more")
        if self.norm == "linf":
            hint = "at most 1, since pixels are in [0, 1] (write 8/255, not 8)"
            require(self.epsilon <= 1, "epsilon", self.epsilon, hint)
        _require_positive("step_size", self.step_size)
        require(self.num_steps >= 0, "num_steps", self.num_steps, "0 or more attack steps")
        require(self.num_restarts >= 1, "num_restarts", self.num_restarts, "1 or more restarts")
        deterministic = self.num_restarts > 1 and not self.random_start
        require(not deterministic, "num_restarts", self.num_restarts, "1 when random_start is off: all would be equal")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how many of the training images are held out for validation."""

    dataset: str = "mnist"
    data_dir: str = "~/tensorflow_datasets"
    raw_data_dir: str | None = None
    fallback_dataset: str | None = None
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        fraction = self.validation_fraction
        require(0 < fraction < 1, "validation_fraction", fraction, "a share of the training set in (0, 1)")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A network of the paper's Table 1 by name, its width w and how its weights start."""

    name: str = "lenet_mnist"
    width: int = 4
    initializer: str = "default"

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "a whole number of 1 or more (the paper uses 1, 2, 4, 8, 16)")


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
        _require_choice("optimizer", self.name, ("adam", "sgd"))
        _require_choice("schedule", self.schedule, ("constant", "cosine", "step"))
        _require_positive("learning_rate", self.learning_rate)
        _require_at_least("warmup_epochs", self.warmup_epochs, 0, " epochs")
        increasing = all(a < b for a, b in zip((0.0, *self.step_epochs), self.step_epochs, strict=False))
        increasing = increasing and all(map(math.isfinite, self.step_epochs))
        require(increasing, "step_epochs", self.step_epochs, "epochs above 0 in rising order, such as 80,150")
        stepped = self.schedule != "step" or bool(self.step_epochs)
        require(stepped, "step_epochs", self.step_epochs, "at least one epoch when schedule is step")
        _require_positive("step_factor", self.step_factor)
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        _require_at_least("weight_decay", self.weight_decay, 0)


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Which weights go, and how hard ADMM pulls.

    `sparsity` holds (pattern, ratio) pairs: a pattern is a shell-style wildcard over layer names such as `conv1`,
    the first that matches a layer decides, and layers that none matches stay dense. `dual_interval` counts epochs or
    steps, see its unit.
    """

    structure: Literal["irregular", "filter", "column"] = "filter"
    sparsity: tuple[tuple[str, float], ...] = (("conv*", 0.5), ("fc1", 0.5))
    rho: float = 0.01
    rho_rule: Literal["uniform", "gradient"] = "gradient"
    rho_growth: float = 1.3
    rescale_dual: bool = True
    dual_interval: float = 0.5
    dual_interval_unit: Literal["epochs", "steps"] = "epochs"

    def __post_init__(self) -> None:
        _require_choice("structure", self.structure, ("irregular", "filter", "column"))
        _require_choice("rho_rule", self.rho_rule, ("uniform", "gradient"))
        require(bool(self.sparsity), "sparsity", self.sparsity, "at least one pattern:ratio, such as conv*:0.5")
        for pattern, ratio in self.sparsity:
            require(bool(pattern), "sparsity", self.sparsity, "a layer pattern before each ratio, such as conv1:0.5")
            require(0 <= ratio < 1, f"sparsity of {pattern}", ratio, "a share of zeros in [0, 1)")
        _require_positive("rho", self.rho)
        _require_at_least("rho_growth", self.rho_growth, 1, " per dual step")
        _require_positive("dual_interval", self.dual_interval)
        _require_choice("dual_interval_unit", self.dual_interval_unit, ("epochs", "steps"))


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of a run. The attack's radius rises linearly from 0 over the first `epsilon_ramp_epochs`."""

    num_epochs: int
    optimizer: OptimizerConfig = OptimizerConfig()
    epsilon_ramp_epochs: float = 0.0

    def __post_init__(self) -> None:
        require(self.num_epochs >= 1, "num_epochs", self.num_epochs, "1 or more epochs")
        _require_at_least("epsilon_ramp_epochs", self.epsilon_ramp_epochs, 0, " epochs")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run: everything that decides its numbers, and nothing else.

    `steps_per_epoch` of 0 means one pass over the training images; another number makes every length in epochs a
    number of steps that does not depend on how many images there are. Three attacks: on the training batch, on the
    validation split after each epoch (to choose the kept model), and the one whose result is reported.
    """

    name: str
    seed: int
    data: DataConfig
    model: ModelConfig
    train_attack: AttackConfig
    select_attack: AttackConfig
    report_attack: AttackConfig
    prune: PruneConfig
    pretrain: StageConfig
    admm: StageConfig
    retrain: StageConfig
    batch_size: int = 128
    eval_batch_size: int = 500
    steps_per_epoch: int = 0

    def __post_init__(self) -> None:
        plain = bool(self.name) and all(c.isalnum() or c in "-_." for c in self.name) and self.name[0] != "."
        require(plain, "name", self.name, "letters, digits, '-', '_' and '.' (it names a folder)")
        require(0 <= self.seed < 2**32, "seed", self.seed, "a whole number from 0 to 4294967295")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more images")
        require(self.eval_batch_size >= 1, "eval_batch_size", self.eval_batch_size, "1 or more images")
        require(self.steps_per_epoch >= 0, "steps_per_epoch", self.steps_per_epoch, "0 (one pass) or more steps")

    def stage(self, name: Stage) -> StageConfig:
        """The stage of that name."""
        return {"pretrain": self.pretrain, "admm": self.admm, "retrain": self.retrain}[name]


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """How often a run writes; changes no number of it."""

    log_every_steps: int = 20
    checkpoint_every_seconds: float = 30.0

    def __post_init__(self) -> None:
        require(self.log_every_steps >= 1, "log_every_steps", self.log_every_steps, "1 or more steps")
        seconds = self.checkpoint_every_seconds
        require(seconds >= 0, "checkpoint_every_seconds", seconds, "0 (after every step) or more seconds")
