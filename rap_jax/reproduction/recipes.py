"""The networks of the paper's experiments as jobs, at one of three scales.

smoke   seconds a run, for tests; its numbers mean nothing
quick   a night on a CPU of two cores, for the widths that it names
paper   the paper's settings

Tables share jobs: two that need the same network name the same job. All networks of a seed have the same data split.
"""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from rap_jax.config.checks import require_choice
from rap_jax.reproduction.job import Inputs, Job

Family = Literal["lenet_mnist", "lenet_cifar10", "resnet18_cifar10", "vgg16_cifar10"]
ScaleName = Literal["smoke", "quick", "paper"]
Structure = Literal["filter", "column", "irregular"]
MNIST: Family = "lenet_mnist"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one family of networks is trained and attacked."""

    flagfile: str  # of `launch`
    epochs: int  # of pretrain, admm and retrain together: what a network from scratch gets
    max_width: int  # of the networks that are run
    ramp_epochs: int  # over which the radius rises in a stage that begins with random weights; 0 for none
    pgd: tuple[str, ...]  # flags of `launch.evaluate` for the attack of the paper's tables
    flags: tuple[str, ...] = ()  # on top of the flagfile
    scratch_ramp_epochs: int = 2  # as `ramp_epochs`, of a network from scratch
    inherited_epochs: int = 0  # of Table 5
    initialized_epochs: int = 0  # of Table B1


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large a reproduction is."""

    name: ScaleName
    recipes: Mapping[Family, Recipe]
    num_seeds: int  # of every cell
    num_images: int  # under AutoAttack
    # Of the stronger recipe, see `robust`, from scratch; pruned networks get as many in three stages.
    robust_epochs: int
    auto_attack: str = "standard"  # version
    rival_seeds: int = 0  # of every cell of the table `rivals`; 0 for `num_seeds`


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
    "--select_attack=pgd",
)  # fmt: skip
_FEW_PGD = ("--pgd_num_steps=2", "--pgd_num_restarts=1")


def _smoke(family: Family) -> Recipe:
    data = ("--dataset=mnist_5k",) if family == MNIST else ()
    return dataclasses.replace(
        _QUICK[family], epochs=3, max_width=2, ramp_epochs=1, scratch_ramp_epochs=1, pgd=_FEW_PGD,
        flags=(*_FEW_STEPS, *data), inherited_epochs=3, initialized_epochs=3,
    )  # fmt: skip


SCALES: Mapping[str, Scale] = MappingProxyType(
    {
        "smoke": Scale("smoke", {family: _smoke(family) for family in _QUICK}, 1, 40, 3, "none"),
        "quick": Scale("quick", _QUICK, 3, 1000, 24, rival_seeds=2),
        "paper": Scale("paper", _PAPER, 3, 1000, 24),
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
    """The scale of that name in `SCALES`, with what the user changes; 0 keeps its seeds and the widths of its recipes.

    `mnist_flags` and `cifar10_flags` come after those of the recipes on that data set.
    """
    require_choice("scale", name, tuple(SCALES))
    scale = SCALES[name]
    recipes = {}
    for family, recipe in scale.recipes.items():
        more = mnist_flags if family == MNIST else cifar10_flags
        width = max_width or recipe.max_width
        recipes[family] = dataclasses.replace(recipe, flags=(*recipe.flags, *more), max_width=width)
    rival_seeds = num_seeds or scale.rival_seeds
    return dataclasses.replace(scale, recipes=recipes, num_seeds=num_seeds or scale.num_seeds, rival_seeds=rival_seeds)


def with_paper_settings(scale: Scale) -> Scale:
    """The jobs of a scale, under the same names, with the settings of the paper and, where it is silent, of its code.

    A report names the settings in which the jobs of the scale differ from these.
    """
    recipes = {}
    for family, recipe in _PAPER.items():
        flags = ["--dual_keeps_graph"]
        flags += ["--attack_batch_norm=batch"] if family in ("resnet18_cifar10", "vgg16_cifar10") else []
        recipes[family] = dataclasses.replace(
            recipe,
            max_width=scale.recipes[family].max_width,
            flags=tuple(flags),
            epochs=recipe.inherited_epochs,  # a network from scratch has one stage there, and no ramp
            scratch_ramp_epochs=0,
        )
    paper = SCALES["paper"]
    return dataclasses.replace(paper, recipes=recipes, num_seeds=scale.num_seeds, rival_seeds=scale.rival_seeds)


_DENSE = ("--sparsity=none", "--admm_epochs=0", "--retrain_epochs=0")
# The paper's recipe for MNIST as far as it makes LeNet collapse: small steps at full radius from the start.
_PAPER_ADAM = ("--pretrain_optimizer=adam", "--pretrain_learning_rate=1e-4", "--pretrain_schedule=constant")
# Differs from the paper, which does not say: (1) the learning rate of SGD, and what is annealed, are chosen here.
_OPTIMIZERS = {
    "Adam": _PAPER_ADAM,
    "SGD": ("--pretrain_optimizer=sgd", "--pretrain_learning_rate=0.01", "--pretrain_schedule=constant"),
    "CosAnneal": ("--pretrain_optimizer=sgd", "--pretrain_learning_rate=0.01", "--pretrain_schedule=cosine"),
}


def dense(scale: Scale, family: Family, width: int, seed: int) -> Job:
    """Adversarially trained by the pretrain stage of the recipe; pruned networks go on from it."""
    return training_job(scale, family, "dense", width, seed, _DENSE)


def natural(scale: Scale, family: Family, width: int, seed: int) -> Job:
    """Trained without an attack."""
    return training_job(
        scale, family, "natural", width, seed, ("--train_attack=none", *_no_ramp(scale, family), *_DENSE)
    )


def pruned(
    scale: Scale, family: Family, width: int, to: int, seed: int, structure: Structure = "filter", *, admm: bool = True
) -> Job:
    """Pruned from the dense one of `width` to the share that width `to` has; without ADMM it is cut and retrained."""
    kind = ("admm" if admm else "cut") + ("" if structure == "filter" else f"_{structure}")
    flags = ["--pretrain_epochs=0", f"--sparsity={sparsity_of(family, width, to, structure)}"]
    flags += [] if structure == "filter" else [f"--structure={structure}"]
    flags += [] if admm else ["--admm_epochs=0"]
    start = dense(scale, family, width, seed)
    return training_job(scale, family, kind, width, seed, tuple(flags), to=to, inputs=(("start_run", (start,)),))


def scratch(scale: Scale, family: Family, width: int, seed: int) -> Job:
    """Trained alone, for as many epochs as a pruned network gets in its three stages."""
    recipe = scale.recipes[family]
    ramp = f"--pretrain_epsilon_ramp_epochs={recipe.scratch_ramp_epochs}"
    return training_job(scale, family, "scratch", width, seed, (f"--pretrain_epochs={recipe.epochs}", ramp, *_DENSE))


def collapsed(scale: Scale, family: Family, width: int, seed: int) -> Job:
    """Likewise, by the paper's recipe: Adam with 1e-4, at full radius from the first step."""
    flags = (f"--pretrain_epochs={scale.recipes[family].epochs}", *_no_ramp(scale, family), *_PAPER_ADAM, *_DENSE)
    return training_job(scale, family, "paper_recipe", width, seed, flags)


def initialized(scale: Scale, family: Family, initializer: str, optimizer: str, seed: int) -> Job:
    """Width 1 from scratch by the paper's recipe, from another initialisation (Table B1)."""
    epochs = f"--pretrain_epochs={scale.recipes[family].initialized_epochs}"
    flags = (epochs, f"--initializer={initializer}", *_no_ramp(scale, family), *_OPTIMIZERS[optimizer], *_DENSE)
    return training_job(scale, family, f"init_{initializer}_{optimizer.lower()}", 1, seed, flags)


def inherited(scale: Scale, family: Family, width: int, to: int, seed: int) -> Job:
    """Width `to`, trained from the initial weights of the filters that pruning from `width` has kept (Table 5).

    It is trained by the stage `retrain`, which runs on the small network.
    """
    recipe = scale.recipes[family]
    flags = (
        "--start_weights=initial", "--pretrain_epochs=0", "--admm_epochs=0", "--sparsity=none",
        f"--retrain_epochs={recipe.inherited_epochs}", f"--retrain_epsilon_ramp_epochs={recipe.ramp_epochs}",
    )  # fmt: skip
    start = pruned(scale, family, width, to, seed)
    return training_job(scale, family, "inherited", width, seed, flags, to=to, inputs=(("start_run", (start,)),))


def auto_attacked(scale: Scale, network: Job) -> Job:
    """AutoAttack on the scale's number of test images."""
    attack = [f"--auto_attack={scale.auto_attack}"]
    attack += ["--pgd_num_steps=2"] if scale.auto_attack == "none" else ["--pgd_num_steps=0"]
    return evaluation_job("auto_attack", network, (*attack, f"--num_images={scale.num_images}"))


def cw_attacked(scale: Scale, family: Family, network: Job) -> Job:
    """PGD on the margin, on the whole test set (Table C1).

    Differs from the paper, which says no more than C&W L-infinity: (1) steps and step size are those of its PGD.
    """
    flags = (*scale.recipes[family].pgd, "--pgd_losses=margin", "--auto_attack=none", _num_images(scale))
    return evaluation_job("cw", network, flags)


def transferred(scale: Scale, family: Family, network: Job, sources: tuple[Job, ...]) -> Job:
    """Images that PGD makes on other networks, shown to this one, the whole test set (Table 6)."""
    flags = (*scale.recipes[family].pgd, "--pgd_losses=ce", "--auto_attack=none", _num_images(scale))
    return evaluation_job("transfer", network, flags, (("transfer_from", sources),))


def _num_images(scale: Scale) -> str:
    return f"--num_images={scale.num_images if scale.name == 'smoke' else 0}"


def evaluation_job(kind: str, network: Job, flags: tuple[str, ...], inputs: Inputs = ()) -> Job:
    """An evaluation of the network that a run ends with."""
    return Job(f"{kind}_{network.name}", "launch.evaluate", flags, (("checkpoint", (network,)), *inputs))


def training_job(
    scale: Scale,
    family: Family,
    kind: str,
    width: int,
    seed: int,
    flags: tuple[str, ...],
    *,
    to: int = 0,
    inputs: Inputs = (),
    flagfile: str = "",
) -> Job:
    """A training run by the recipe of the family, or by another flagfile."""
    recipe = scale.recipes[family]
    widths = f"w{width}_to_w{to}" if to else f"w{width}"
    name = f"{family}_{kind}_{widths}_seed{seed}"
    common = (
        f"--flagfile={flagfile or recipe.flagfile}",
        f"--name={name}",
        *recipe.flags,
        f"--width={width}",
        f"--seed={seed}",
    )
    return Job(name, "launch.main", (*common, *flags), inputs)


def _no_ramp(scale: Scale, family: Family) -> tuple[str, ...]:
    return ("--pretrain_epsilon_ramp_epochs=0",) if scale.recipes[family].ramp_epochs else ()


def sparsity_of(family: Family, width: int, to: int, structure: Structure) -> str:
    """The paper prunes every layer by the same ratio, and the outputs of the last one stay."""
    ratio = str(float(1 - Fraction(to, width)))
    layers = ("conv1", "conv2", "fc1") if family == MNIST and structure == "filter" else ()
    return ",".join(f"{layer}:{ratio}" for layer in layers) or ratio
