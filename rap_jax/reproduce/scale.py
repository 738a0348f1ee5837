"""How large a reproduction is: which recipe stands for which network, how many seeds, how wide, how many images.

smoke   seconds a run, for tests: nothing it measures means anything
quick   a night on a CPU of two cores, for the widths that it names
paper   the paper's settings
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from rap_jax.config.checks import require_choice

Family = Literal["lenet_mnist", "lenet_cifar10", "resnet18_cifar10", "vgg16_cifar10"]
ScaleName = Literal["smoke", "quick", "paper"]
MNIST: Family = "lenet_mnist"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What stands for the paper's training of one network.

    Attributes:
      flagfile: of `launch`.
      epochs: of pretrain, admm and retrain together: what a network from scratch gets.
      inherited_epochs, initialized_epochs: of Table 5 and Table B1.
      max_width: of the networks that are run.
      ramp_epochs: over which the radius rises in a stage that begins with random weights; 0 for none.
      scratch_ramp_epochs: likewise of a network from scratch, which is the one that is to be trained well.
      flags: on top of the flagfile.
      pgd: flags of `launch.evaluate` for the attack of the paper's tables.
    """

    flagfile: str
    epochs: int
    max_width: int
    ramp_epochs: int
    pgd: tuple[str, ...]
    flags: tuple[str, ...] = ()
    scratch_ramp_epochs: int = 2
    inherited_epochs: int = 0
    initialized_epochs: int = 0


@dataclasses.dataclass(frozen=True)
class Scale:
    """Attributes: recipes: by network; num_seeds: of every cell; num_images: under AutoAttack; auto_attack: version."""

    name: ScaleName
    recipes: Mapping[Family, Recipe]
    num_seeds: int
    num_images: int
    auto_attack: str = "standard"


_MNIST_PGD = ("--pgd_num_steps=40", "--pgd_step_size=0.01", "--pgd_num_restarts=1")
_CIFAR_PGD = ("--pgd_num_steps=10", "--pgd_step_size=2/255", "--pgd_num_restarts=1")
_PAPER: dict[Family, Recipe] = {
    "lenet_mnist": Recipe("lenet_mnist_paper", 249, 16, 0, _MNIST_PGD, inherited_epochs=83, initialized_epochs=300),
    "lenet_cifar10": Recipe("lenet_cifar10", 700, 16, 0, _CIFAR_PGD),
    "resnet18_cifar10": Recipe("resnet18_cifar10", 700, 16, 0, _CIFAR_PGD),
    "vgg16_cifar10": Recipe("vgg16_cifar10", 700, 16, 0, _CIFAR_PGD),
}
_QUICK: dict[Family, Recipe] = {
    "lenet_mnist": Recipe("quick_mnist", 30, 8, 2, _MNIST_PGD, inherited_epochs=30, initialized_epochs=30),
    "lenet_cifar10": Recipe("lenet_cifar10_small", 16, 2, 2, _CIFAR_PGD),
    "resnet18_cifar10": Recipe("resnet18_cifar10_small", 11, 2, 2, _CIFAR_PGD),
    "vgg16_cifar10": Recipe("vgg16_cifar10_small", 11, 4, 2, _CIFAR_PGD),
}
_FEW_STEPS = (
    "--steps_per_epoch=4", "--pretrain_epochs=1", "--admm_epochs=1", "--retrain_epochs=1", "--dual_interval=0.5",
    "--pretrain_epsilon_ramp_epochs=0.5", "--batch_size=32", "--eval_batch_size=100", "--train_num_steps=2",
    "--select_num_steps=2", "--report_num_steps=2", "--report_step_size=0.1", "--nomeasure_cost",
)  # fmt: skip
_FEW_PGD = ("--pgd_num_steps=2", "--pgd_num_restarts=1")


def _smoke(family: Family) -> Recipe:
    data = ("--dataset=mnist_5k",) if family == MNIST else ()
    return dataclasses.replace(
        _QUICK[family], epochs=3, max_width=2, ramp_epochs=1, scratch_ramp_epochs=1, pgd=_FEW_PGD,
        flags=(*_FEW_STEPS, *data), inherited_epochs=3, initialized_epochs=3,
    )  # fmt: skip


_FAMILIES: tuple[Family, ...] = ("lenet_mnist", "lenet_cifar10", "resnet18_cifar10", "vgg16_cifar10")
SCALES: Mapping[str, Scale] = MappingProxyType(
    {
        "smoke": Scale("smoke", {family: _smoke(family) for family in _FAMILIES}, 1, 40, "none"),
        "quick": Scale("quick", _QUICK, 3, 1000),
        "paper": Scale("paper", _PAPER, 3, 1000),
    }
)


def scale_of(
    name: str,
    *,
    num_seeds: int = 0,
    max_width: int = 0,
    mnist_flags: tuple[str, ...] = (),
    cifar10_flags: tuple[str, ...] = (),
) -> Scale:
    """A scale, with what the user changes.

    Args:
      name: of `SCALES`.
      num_seeds: 0 for that of the scale.
      max_width: of all networks; 0 for that of the recipe.
      mnist_flags, cifar10_flags: on top of those of the recipes on that data set.

    Raises:
      ValueError: there is no such scale.
    """
    require_choice("scale", name, tuple(SCALES))
    scale = SCALES[name]
    recipes = {}
    for family, recipe in scale.recipes.items():
        more = mnist_flags if family == MNIST else cifar10_flags
        width = max_width or recipe.max_width
        recipes[family] = dataclasses.replace(recipe, flags=(*recipe.flags, *more), max_width=width)
    return dataclasses.replace(scale, recipes=recipes, num_seeds=num_seeds or scale.num_seeds)
