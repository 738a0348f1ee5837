"""A whole run."""

import dataclasses
from typing import Literal

from rap_jax.config.attack import AttackConfig
from rap_jax.config.checks import require, require_at_least, require_choice
from rap_jax.config.data import AugmentConfig, DataConfig
from rap_jax.config.model import ModelConfig
from rap_jax.config.optimizer import StageConfig
from rap_jax.config.prune import PruneConfig

Stage = Literal["pretrain", "admm", "retrain"]
STAGES: tuple[Stage, ...] = ("pretrain", "admm", "retrain")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What a training step does with a batch.

    Attributes:
      attack: training attack; None is natural training.
      attack_batch_norm: statistics by which BatchNorm normalises inside the attack: `running` is evaluation mode, the
        network that will be attacked; `batch` those of the batch, as in the authors' code. Without meaning in free
        training, whose one pass is the training pass.
      augment: random changes of the images, before the attack.
      label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
      mixup_alpha: images and labels are mixed in pairs, by a share from Beta(alpha, alpha); 0 is no mixup.
      free_replays: in free training (see `rap_jax.training.step`), updates on each batch in a row; the attack is then
        that of `free_attack`. 0 is any other training.
      compute_dtype: of the passes through the network in training, see `rap_jax.models.model`. Evaluation
        computes in float32.
    """

    attack: AttackConfig | None
    attack_batch_norm: Literal["running", "batch"] = "running"
    augment: AugmentConfig = AugmentConfig()  # noqa: RUF009  frozen
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    free_replays: int = 0
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        require_choice("attack_batch_norm", self.attack_batch_norm, ("running", "batch"))
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a share in [0, 1)")
        require_at_least("mixup_alpha", self.mixup_alpha, 0)
        require_choice("compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
        hint = "0, or 2 or more updates on each batch in free training"
        require(self.free_replays == 0 or self.free_replays >= 2, "free_replays", self.free_replays, hint)
        if self.free_replays:
            self._check_free()

    def _check_free(self) -> None:
        attack = self.attack
        one_step = attack is not None and attack.num_steps == attack.num_restarts == 1 and not attack.random_start
        require(one_step, "attack", attack, "one step, no restarts and no random start in free training: free_attack()")
        hint = "running in free training, which has no attack beside the training pass"
        require(self.attack_batch_norm == "running", "attack_batch_norm", self.attack_batch_norm, hint)

    @property
    def attacks_first(self) -> bool:
        """Whether a step attacks its batch before the training pass: not in natural training, nor in free training."""
        return self.attack is not None and not self.free_replays

    @property
    def updates_per_batch(self) -> int:
        """Updates on a batch before the next one comes."""
        return max(1, self.free_replays)


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """Where a run's weights come from; without `run_dir` they are drawn at random.

    Weights that are zero at a start from another run stay zero in every stage (progressive pruning).

    Attributes:
      run_dir: folder of a finished run of the same network and width.
      weights: `final` takes the network that it ended with; `initial` the weights that it began with, where the final
        network is not zero: a smaller network that inherits its initialisation (the paper's Table 5).
    """

    run_dir: str | None = None
    weights: Literal["final", "initial"] = "final"

    def __post_init__(self) -> None:
        require_choice("weights of the start", self.weights, ("final", "initial"))
        if self.weights == "initial":
            hint = "final, unless --start_run names a run"
            require(self.run_dir is not None, "weights of the start", self.weights, hint)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run: everything that decides its numbers, and nothing else.

    `steps_per_epoch` of 0 means one pass over the training images; another number makes every length in epochs a
    number of steps that does not depend on how many images there are. `small_retrain` retrains the network without its
    removed filters, which gives the same weights up to rounding in less time. Three attacks: that of `train`
    on the training batch, one on the validation split after each epoch (to choose the kept model), and the one whose
    result is reported.
    """

    name: str
    seed: int
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    select_attack: AttackConfig
    report_attack: AttackConfig
    prune: PruneConfig
    pretrain: StageConfig
    admm: StageConfig
    retrain: StageConfig
    batch_size: int = 128
    eval_batch_size: int = 500
    steps_per_epoch: int = 0
    small_retrain: bool = True
    start: StartConfig = StartConfig()

    def __post_init__(self) -> None:
        plain = bool(self.name) and all(c.isalnum() or c in "-_." for c in self.name) and self.name[0] != "."
        require(plain, "name", self.name, "letters, digits, '-', '_' and '.' (it names a folder)")
        require(0 <= self.seed < 2**32, "seed", self.seed, "a whole number from 0 to 4294967295")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more images")
        require(self.eval_batch_size >= 1, "eval_batch_size", self.eval_batch_size, "1 or more images")
        require(self.steps_per_epoch >= 0, "steps_per_epoch", self.steps_per_epoch, "0 (one pass) or more steps")
        ready = self.start.run_dir is not None or any(self.stage(stage).num_epochs for stage in STAGES)
        require(ready, "num_epochs", 0, "1 or more in some stage: without --start_run there is nothing else to report")
        pulls = not self.prune.sparsity and self.admm.num_epochs > 0
        hint = "0 (--admm_epochs=0) when sparsity is none, since there is nothing to pull to zero"
        require(not pulls, "num_epochs of admm", self.admm.num_epochs, hint)

    def stage(self, name: Stage) -> StageConfig:
        """The stage of that name."""
        return {"pretrain": self.pretrain, "admm": self.admm, "retrain": self.retrain}[name]


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """How often a run writes, and what; changes none of its other numbers.

    `measure_cost` counts and measures at the end what the network costs, see `rap_jax.compaction`.
    """

    log_every_steps: int = 20
    checkpoint_every_seconds: float = 30.0
    measure_cost: bool = True

    def __post_init__(self) -> None:
        require(self.log_every_steps >= 1, "log_every_steps", self.log_every_steps, "1 or more steps")
        seconds = self.checkpoint_every_seconds
        require(seconds >= 0, "checkpoint_every_seconds", seconds, "0 (after every step) or more seconds")
