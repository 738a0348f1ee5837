"""The networks of the paper's experiments, each as the job that trains it, and the evaluations of them.

They are shared: what two tables need is one job. Every network of a seed goes back to the same split of the data.
"""

from fractions import Fraction
from typing import Literal

from rap_jax.reproduce.job import Job
from rap_jax.reproduce.scale import MNIST, Family, Scale

Structure = Literal["filter", "column", "irregular"]
_DENSE = ("--sparsity=none", "--admm_epochs=0", "--retrain_epochs=0")
_FULL_RADIUS_AT_ONCE = "--pretrain_epsilon_ramp_epochs=0"
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
    return _run(scale, family, "dense", width, seed, _DENSE)


def natural(scale: Scale, family: Family, width: int, seed: int) -> Job:
    """Trained without an attack."""
    return _run(scale, family, "natural", width, seed, ("--train_attack=none", *_no_ramp(scale, family), *_DENSE))


def pruned(
    scale: Scale, family: Family, width: int, to: int, seed: int, structure: Structure = "filter", *, admm: bool = True
) -> Job:
    """Pruned from the dense one of `width` to the share that width `to` has; without ADMM it is cut and retrained."""
    kind = ("admm" if admm else "cut") + ("" if structure == "filter" else f"_{structure}")
    flags = ["--pretrain_epochs=0", f"--sparsity={_sparsity(family, width, to, structure)}"]
    flags += [] if structure == "filter" else [f"--structure={structure}"]
    flags += [] if admm else ["--admm_epochs=0"]
    start = dense(scale, family, width, seed)
    return _run(scale, family, kind, width, seed, tuple(flags), to=to, inputs=(("start_run", (start,)),))


def scratch(scale: Scale, family: Family, width: int, seed: int) -> Job:
    """Trained alone, for as many epochs as a pruned network gets in its three stages."""
    recipe = scale.recipes[family]
    ramp = f"--pretrain_epsilon_ramp_epochs={recipe.scratch_ramp_epochs}"
    return _run(scale, family, "scratch", width, seed, (f"--pretrain_epochs={recipe.epochs}", ramp, *_DENSE))


def collapsed(scale: Scale, family: Family, width: int, seed: int) -> Job:
    """Likewise, by the paper's recipe: Adam with 1e-4, at full radius from the first step."""
    flags = (f"--pretrain_epochs={scale.recipes[family].epochs}", *_no_ramp(scale, family), *_PAPER_ADAM, *_DENSE)
    return _run(scale, family, "paper_recipe", width, seed, flags)


def initialized(scale: Scale, family: Family, initializer: str, optimizer: str, seed: int) -> Job:
    """Width 1 from scratch by the paper's recipe, from another initialisation (Table B1)."""
    epochs = f"--pretrain_epochs={scale.recipes[family].initialized_epochs}"
    flags = (epochs, f"--initializer={initializer}", *_no_ramp(scale, family), *_OPTIMIZERS[optimizer], *_DENSE)
    return _run(scale, family, f"init_{initializer}_{optimizer.lower()}", 1, seed, flags)


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
    return _run(scale, family, "inherited", width, seed, flags, to=to, inputs=(("start_run", (start,)),))


def auto_attacked(scale: Scale, network: Job) -> Job:
    """AutoAttack on the scale's number of test images."""
    attack = [f"--auto_attack={scale.auto_attack}"]
    attack += ["--pgd_num_steps=2"] if scale.auto_attack == "none" else ["--pgd_num_steps=0"]
    return _evaluation("auto_attack", network, (*attack, f"--num_images={scale.num_images}"))


def cw_attacked(scale: Scale, family: Family, network: Job) -> Job:
    """PGD on the margin, on the whole test set (Table C1).

    Differs from the paper, which says no more than C&W L-infinity: (1) steps and step size are those of its PGD.
    """
    flags = (*scale.recipes[family].pgd, "--pgd_losses=margin", "--auto_attack=none", _num_images(scale))
    return _evaluation("cw", network, flags)


def transferred(scale: Scale, family: Family, network: Job, sources: tuple[Job, ...]) -> Job:
    """Images that PGD makes on other networks, shown to this one, the whole test set (Table 6)."""
    flags = (*scale.recipes[family].pgd, "--pgd_losses=ce", "--auto_attack=none", _num_images(scale))
    return _evaluation("transfer", network, flags, (("transfer_from", sources),))


def _num_images(scale: Scale) -> str:
    return f"--num_images={scale.num_images if scale.name == 'smoke' else 0}"


def _evaluation(
    kind: str, network: Job, flags: tuple[str, ...], inputs: tuple[tuple[str, tuple[Job, ...]], ...] = ()
) -> Job:
    return Job(f"{kind}_{network.name}", "launch.evaluate", flags, (("checkpoint", (network,)), *inputs))


def _run(
    scale: Scale,
    family: Family,
    kind: str,
    width: int,
    seed: int,
    flags: tuple[str, ...],
    *,
    to: int = 0,
    inputs: tuple[tuple[str, tuple[Job, ...]], ...] = (),
) -> Job:
    recipe = scale.recipes[family]
    widths = f"w{width}_to_w{to}" if to else f"w{width}"
    name = f"{family}_{kind}_{widths}_seed{seed}"
    common = (f"--flagfile={recipe.flagfile}", f"--name={name}", *recipe.flags, f"--width={width}", f"--seed={seed}")
    return Job(name, "launch.main", (*common, *flags), inputs)


def _no_ramp(scale: Scale, family: Family) -> tuple[str, ...]:
    return (_FULL_RADIUS_AT_ONCE,) if scale.recipes[family].ramp_epochs else ()


def _sparsity(family: Family, width: int, to: int, structure: Structure) -> str:
    """The paper prunes every layer by the same ratio, and the outputs of the last one stay."""
    ratio = str(float(1 - Fraction(to, width)))
    layers = ("conv1", "conv2", "fc1") if family == MNIST and structure == "filter" else ()
    return ",".join(f"{layer}:{ratio}" for layer in layers) or ratio
