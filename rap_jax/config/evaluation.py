"""What an evaluation of robustness is."""

import dataclasses
from typing import Literal

from rap_jax.config.attack import AttackConfig, Norm
from rap_jax.config.checks import require, require_choice, require_positive

EvaluatedSplit = Literal["test", "validation"]
AutoAttackVersion = Literal["standard", "plus", "rand", "none"]
PgdLoss = Literal["ce", "margin"]
PGD_LOSSES: tuple[PgdLoss, ...] = ("ce", "margin")
SPLITS: tuple[EvaluatedSplit, ...] = ("test", "validation")
AUTO_ATTACKS: tuple[AutoAttackVersion, ...] = ("standard", "plus", "rand", "none")
# Steps times step size, over the radius, where no step size is given: enough to cross the ball and turn back.
_REACH = 2.5


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Everything that decides the numbers of an evaluation, but for the networks and the images.

    Attributes:
      epsilon: radius of the threat model, above 0, for images in [0, 1].
      norm: `linf` or `l2`.
      split: whose images are attacked.
      num_images: the first so many of them; 0 takes all.
      seed: of everything random in the attacks.
      pgd_num_steps: steps of PGD; 0 leaves PGD out.
      pgd_step_size: None chooses 2.5 epsilon / steps.
      pgd_num_restarts: random starts of PGD, worst case per example.
      pgd_losses: what PGD raises, one after the other: cross-entropy (`ce`), `margin` (C&W), or both.
      auto_attack: version of AutoAttack, or `none`. `rand` is for networks that draw random numbers: then there is no
        PGD and there are no diagnostics, which ask for a function.
    """

    epsilon: float
    norm: Norm = "linf"
    split: EvaluatedSplit = "test"
    num_images: int = 1000
    seed: int = 0
    pgd_num_steps: int = 50
    pgd_step_size: float | None = None
    pgd_num_restarts: int = 5
    auto_attack: AutoAttackVersion = "standard"
    pgd_losses: tuple[PgdLoss, ...] = PGD_LOSSES

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        AttackConfig(self.norm, self.epsilon)  # refuses norm and radius
        require_choice("split", self.split, SPLITS)
        require(self.num_images >= 0, "num_images", self.num_images, "1 or more images, or 0 for all")
        require(0 <= self.seed < 2**32, "seed", self.seed, "a whole number from 0 to 4294967295")
        require_choice("auto_attack", self.auto_attack, AUTO_ATTACKS)
        attacked = self.pgd_num_steps != 0 or self.auto_attack != "none"
        require(attacked, "pgd_num_steps", 0, "1 or more steps where auto_attack is none: nothing would be attacked")
        require(self.pgd_num_steps >= 0, "pgd_num_steps", self.pgd_num_steps, "1 or more steps, or 0 for no PGD")
        if self.pgd_step_size is not None:
            require_positive("pgd_step_size", self.pgd_step_size)
        fits = bool(self.pgd_losses) and set(self.pgd_losses) <= set(PGD_LOSSES)
        fits = fits and len(set(self.pgd_losses)) == len(self.pgd_losses)
        require(fits, "pgd_losses", self.pgd_losses, f"one or more of {', '.join(PGD_LOSSES)}, each once")
        require(self.pgd_num_restarts >= 1, "pgd_num_restarts", self.pgd_num_restarts, "1 or more restarts")

    @property
    def is_randomized(self) -> bool:
        """Whether the network takes a key: images, key -> logits."""
        return self.auto_attack == "rand"

    @property
    def pgd(self) -> AttackConfig | None:
        """The settings of PGD, on this network and on those that images are transferred from; None for no PGD."""
        if self.pgd_num_steps == 0:
            return None
        step_size = self.pgd_step_size or _REACH * self.epsilon / self.pgd_num_steps
        return AttackConfig(self.norm, self.epsilon, step_size, self.pgd_num_steps, self.pgd_num_restarts)
