"""What the main job is, for both sides of `benchmarks.main_job`."""

import dataclasses

from rap_jax.config import AttackConfig


@dataclasses.dataclass(frozen=True)
class JobSettings:
    """Three stages of one epoch: LeNet of a width, a share of the filters of conv1, conv2 and fc1 removed.

    Attributes:
      num_steps: K, of every attack: in training, on validation and in the report.
      steps_per_epoch: 0 for one pass over the training images.
    """

    width: int = 8
    sparsity: float = 0.5
    batch_size: int = 64
    eval_batch_size: int = 500
    num_steps: int = 40
    steps_per_epoch: int = 0
    learning_rate: float = 1e-3
    rho: float = 1e-3
    rho_growth: float = 1.3

    @property
    def attack(self) -> AttackConfig:
        """The paper's, of radius 0.3 in steps of 0.01."""
        return AttackConfig(num_steps=self.num_steps)

    @property
    def flags(self) -> list[str]:
        """The same job for `launch.main`; the radius rises in the first half of pretrain, the dual step is halfway."""
        parts, stages = ("train", "select", "report"), ("pretrain", "admm", "retrain")
        return [
            *("--model=lenet_mnist", f"--width={self.width}", f"--batch_size={self.batch_size}"),
            *(f"--eval_batch_size={self.eval_batch_size}", f"--steps_per_epoch={self.steps_per_epoch}"),
            *(f"--{part}_num_steps={self.num_steps}" for part in parts),
            *(f"--{part}_step_size=0.01" for part in parts),
            *(f"--{stage}_epochs=1" for stage in stages),
            *(f"--{stage}_learning_rate={self.learning_rate}" for stage in stages),
            *("--pretrain_epsilon_ramp_epochs=0.5", "--structure=filter"),
            f"--sparsity=conv1:{self.sparsity},conv2:{self.sparsity},fc1:{self.sparsity}",
            *("--rho_rule=uniform", f"--rho={self.rho}", f"--rho_growth={self.rho_growth}", "--norescale_dual"),
            "--dual_interval=0.5",
        ]
