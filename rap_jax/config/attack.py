"""The settings of an attack, and of an evaluation by several of them."""

import dataclasses
import math
import numbers
from typing import Literal, get_args

from rap_jax.config.checks import require, require_choice, require_choices, require_positive, require_seed, setting

Norm = Literal["linf", "l2"]
EvaluatedSplit = Literal["test", "validation"]
AutoAttackVersion = Literal["standard", "plus", "rand", "strong", "quick", "none"]
CertifyMethod = Literal["none", "interval", "crown_ibp", "crown"]
PgdLoss = Literal["ce", "margin"]
PGD_LOSSES: tuple[PgdLoss, ...] = get_args(PgdLoss)
# Steps times step size, over the radius, where no step size is given: enough to cross the ball and turn back.
_REACH = 2.5


def check_radius(norm: str, epsilon: float, num_pixels: int) -> None:
    """Refuses a norm or a radius that no attack on images of so many numbers in [0, 1] can have.

    Raises:
      ValueError: names what is wrong.
    """
    require_choice("norm", norm, get_args(Norm))
    number = isinstance(epsilon, numbers.Real)
    require(number, "epsilon", epsilon, "a number, in the units of pixels in [0, 1] (8 / 255, not 8)")
    require_positive("epsilon", epsilon)
    largest = 1.0 if norm == "linf" else math.sqrt(num_pixels)
    hint = f"at most {largest:.4g}, with which any image becomes any other, since pixels are in [0, 1]"
    require(epsilon <= largest, "epsilon", epsilon, hint)


@dataclasses.dataclass(frozen=True)
class AttackConfig:
    """A projected-gradient attack. `epsilon` and `step_size` are in input units, for inputs in [0, 1]."""

    norm: Norm = setting("linf", "Norm of the threat model.")
    epsilon: float = setting(0.3, "Radius of the threat model, for images in [0, 1].", syntax="fraction")
    step_size: float = setting(0.01, "Step size of PGD in {phase}.", flag="{part}_step_size", syntax="fraction")
    num_steps: int = setting(40, "Steps of PGD in {phase}.", flag="{part}_num_steps")
    num_restarts: int = setting(1, "Random starts of PGD in {phase}, worst case per example.",
        flag="{part}_num_restarts")  # fmt: skip
    step_schedule: Literal["constant", "geometric"] = setting("constant", "Sizes of the steps of PGD in {phase}: all "
        "alike, or falling from that size to a tenth of it by equal factors.", flag="{part}_step_schedule")  # fmt: skip
    random_start: bool = setting(True, "Start PGD at a random point of the ball.")

    def __post_init__(self) -> None:
        require_choices(self)
        require(math.isfinite(self.epsilon) and self.epsilon >= 0, "epsilon", self.epsilon, "a radius of 0 or more")
        if self.norm == "linf":
            hint = "at most 1, since pixels are in [0, 1] (write 8/255, not 8)"
            require(self.epsilon <= 1, "epsilon", self.epsilon, hint)
        require_positive("step_size", self.step_size)
        require(self.num_steps >= 0, "num_steps", self.num_steps, "0 or more attack steps")
        require(self.num_restarts >= 1, "num_restarts", self.num_restarts, "1 or more restarts")
        deterministic = self.num_restarts > 1 and not self.random_start
        require(not deterministic, "num_restarts", self.num_restarts, "1 when random_start is off: all would be equal")

    @property
    def step_sizes(self) -> float | tuple[float, ...]:
        """One size for all steps, or that of each."""
        if self.step_schedule == "constant" or self.num_steps < 2:
            return self.step_size
        return tuple(self.step_size * 0.1 ** (step / (self.num_steps - 1)) for step in range(self.num_steps))


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


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Everything that decides the numbers of an evaluation, but for the networks and the images."""

    epsilon: float  # radius of the threat model, above 0, for images in [0, 1]
    norm: Norm = "linf"
    split: EvaluatedSplit = setting("test", "Whose images are attacked.")
    num_images: int = setting(1000, "The first so many of them; 0 for all.")
    seed: int = setting(0, "Seed of everything random in the attacks.")
    pgd_num_steps: int = setting(50, "Steps of PGD; 0 leaves it out. An image of any step breaks an example here; in "
        "launch.main the last one alone.")  # fmt: skip
    pgd_step_size: float | None = setting(None, "Step size of PGD. Default: 2.5 epsilon / steps.", syntax="fraction")
    pgd_num_restarts: int = setting(5, "Random starts of PGD on each loss, worst case per example.")
    # `rand` leaves out PGD and the diagnostics, which need a deterministic network.
    auto_attack: AutoAttackVersion = setting("standard", "Version of AutoAttack. strong goes on where standard ends, "
        "for networks whose gradients mislead; quick is a cheap look. rand is for networks that draw random numbers, "
        "(images, key) -> logits; there is no PGD then.")  # fmt: skip
    pgd_losses: tuple[PgdLoss, ...] = setting(PGD_LOSSES, "What PGD raises, one after the other: cross-entropy (ce), "
        "margin (C&W).")  # fmt: skip
    # The methods of `rap_jax.evaluation.certificates`; each looks at what the ones before it have left open.
    certify: CertifyMethod = setting("none", "What proves images robust, so that robust accuracy gets a lower bound "
        "too, up to this method: intervals (seconds), intervals and CROWN for the logits, CROWN throughout (minutes to "
        "hours). Of networks trained against PGD alone they prove little at the radius of the training.")  # fmt: skip

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_choices(self)
        AttackConfig(self.norm, self.epsilon)  # refuses the radius
        require(self.num_images >= 0, "num_images", self.num_images, "1 or more images, or 0 for all")
        require_seed(self.seed)
        attacked = self.pgd_num_steps != 0 or self.auto_attack != "none"
        require(attacked, "pgd_num_steps", 0, "1 or more steps where auto_attack is none: nothing would be attacked")
        require(self.pgd_num_steps >= 0, "pgd_num_steps", self.pgd_num_steps, "1 or more steps, or 0 for no PGD")
        if self.pgd_step_size is not None:
            require_positive("pgd_step_size", self.pgd_step_size)
        fits = bool(self.pgd_losses) and set(self.pgd_losses) <= set(PGD_LOSSES)
        fits = fits and len(set(self.pgd_losses)) == len(self.pgd_losses)
        require(fits, "pgd_losses", self.pgd_losses, f"one or more of {', '.join(PGD_LOSSES)}, each once")
        require(self.pgd_num_restarts >= 1, "pgd_num_restarts", self.pgd_num_restarts, "1 or more restarts")
        provable = self.certify == "none" or not self.is_randomized
        require(provable, "certify", self.certify, "none where auto_attack is rand: a draw has no bounds here")

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
