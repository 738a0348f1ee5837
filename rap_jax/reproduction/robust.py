"""The robust study: small networks by a recipe that is stronger than the paper's, and what its parts are worth.

Recipe: `launch/lenet_mnist_robust.flags`. Judged by AutoAttack; epochs are chosen on validation.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from rap_jax.reproduction import recipes
from rap_jax.reproduction.cells import Builder, Cell, Quantity
from rap_jax.reproduction.job import Job
from rap_jax.reproduction.recipes import MNIST, Family, Scale, evaluation_job, sparsity_of, training_job

FLAGFILE = "lenet_mnist_robust"
# Widths that are pruned to each width.
_PRUNED = MappingProxyType({1: (4, 8), 2: (4, 8), 4: (8,), 8: ()})
# What is left of a network after such a cut answers one class: as at its first start, the radius has to rise.
_HARSH = 8
_ABLATION_EPOCHS, _ABLATION_WIDTHS, _WIDE = 8, (1, 2), 4
_COSINE = ("--pretrain_schedule=cosine",)
_OLD_RATE = (*_COSINE, "--ema_decay=0")
# Row of the ablation -> flags after those of the recipe.
_WITHOUT = MappingProxyType(
    {
        "hinges in conv1": ("--initializer=default",),
        "constant learning rate (cosine)": _COSINE,
        "mean of weights": ("--ema_decay=0",),
        "mean of weights and constant learning rate": _OLD_RATE,
        "mean of weights, constant rate and strong choice": (*_OLD_RATE, "--select_attack=pgd"),
        "batch 32 (128)": ("--batch_size=128",),
        "falling attack steps (0.075 each)": ("--train_step_schedule=constant", "--train_step_size=0.075"),
        "leaky backward pass": ("--train_leaky_slope=0",),
        "radius 0.33 in training (0.3)": ("--train_epsilon=0.3",),
        "epoch chosen by a strong attack (PGD-10)": ("--select_attack=pgd",),
    }
)
_WITH = MappingProxyType(
    {
        "learning rate that falls at the end": (
            "--pretrain_schedule=step",
            "--pretrain_step_epochs=5,7",
            "--pretrain_step_factor=0.3",
        ),
        "two cosine cycles": (*_COSINE, "--pretrain_num_cycles=2"),
        "batch 16": ("--batch_size=16",),
        "batch 64": ("--batch_size=64",),
        "radius 0.32": ("--train_epsilon=0.32",),
        "radius 0.34": ("--train_epsilon=0.34",),
        "radius 0.36": ("--train_epsilon=0.36",),
        "learning rate 1e-3": ("--pretrain_learning_rate=1e-3",),
        "learning rate 6e-3": ("--pretrain_learning_rate=6e-3",),
        "leaky backward pass of 0.1": ("--train_leaky_slope=0.1",),
        "mean of weights, 0.9995": ("--ema_decay=0.9995",),
        "label smoothing 0.1": ("--label_smoothing=0.1",),
        "weight decay 1e-4": ("--pretrain_weight_decay=1e-4",),
        "weights perturbed by 0.005": ("--awp_gamma=0.005",),
        "BatchNorm, folded afterwards": ("--model=lenet_mnist_bn",),
    }
)


def dense(scale: Scale, family: Family, width: int, seed: int) -> Job:
    """The pretrain stage; pruned networks go on from it."""
    flags = ("--sparsity=none", "--admm_epochs=0", "--retrain_epochs=0")
    return training_job(scale, family, "robust_dense", width, seed, flags, flagfile=FLAGFILE)


def pruned(scale: Scale, family: Family, width: int, to: int, seed: int, *, distilled: bool = False) -> Job:
    """Pruned by filters from the dense one, with the recipe in all stages; `distilled`: taught by it (RSLAD)."""
    flags: tuple[str, ...] = ("--pretrain_epochs=0", f"--sparsity={sparsity_of(family, width, to, 'filter')}")
    if width >= _HARSH * to:
        flags += (f"--retrain_epsilon_ramp_epochs={min(2, scale.robust_epochs / 6):g}",)
    flags += ("--distillation=rslad",) if distilled else ()
    start = (("start_run", (dense(scale, family, width, seed),)),)
    kind = "robust_distilled" if distilled else "robust_admm"
    return training_job(scale, family, kind, width, seed, flags, to=to, inputs=start, flagfile=FLAGFILE)


def scratch(scale: Scale, family: Family, width: int, seed: int) -> Job:
    """Trained alone, for as many epochs as a pruned network gets in its three stages."""
    return _scratch(scale, family, "robust_scratch", width, seed, scale.robust_epochs)


def ablated(scale: Scale, family: Family, row: str, width: int, seed: int) -> Job:
    """A row of the ablation."""
    words = "".join(letter if letter.isalnum() or letter == "." else " " for letter in row).split()
    kind = "_".join(["ablation", "without" if row in _WITHOUT else "with", *words])
    epochs = min(_ABLATION_EPOCHS, scale.robust_epochs)
    more = (_WITHOUT | _WITH).get(row, ())
    return _scratch(scale, family, kind, width, seed, epochs, more)


# Row of the ablation -> how its networks of width 4 are pruned to each width.
_PRUNED_ROWS: Mapping[str, Callable[..., Job]] = MappingProxyType(
    {
        f"pruned from {_WIDE}, 24 epochs": pruned,
        f"pruned from {_WIDE}, 24 epochs, taught by the dense network": functools.partial(pruned, distilled=True),
    }
)


def sizes(scale: Scale) -> Builder:
    """Cells of the table `robust`."""
    build = Builder(scale, MNIST)
    for width in (width for width in _PRUNED if build.reaches(width, f"all of w={width}")):
        row = f"w={width}"
        if width <= 2:  # wider ones were not trained so
            jobs = build.over_seeds(recipes.scratch, width)
            build.add_tested(row, "from scratch, recipe of the tables", jobs, None, attacked=True)
        jobs = build.over_seeds(scratch, width)
        build.add_tested(row, "from scratch", jobs, None, attacked=True)
        for wide, _ in build.pruned((wide, width) for wide in _PRUNED[width]):
            jobs = build.over_seeds(pruned, wide, width)
            build.add_tested(row, f"pruned from {wide}", jobs, None, attacked=True)
    return build


def ablation(scale: Scale) -> Builder:
    """Cells of the table `ablation`."""
    build = Builder(scale, MNIST)
    for row in ("the recipe", *_WITHOUT, *_WITH):
        for width in (width for width in _ABLATION_WIDTHS if build.reaches(width, f"{row}, w={width}")):
            jobs = build.over_seeds(ablated, row, width)
            _add_validated(build, row if row not in _WITHOUT else f"without: {row}", width, jobs)
    for row, make in _PRUNED_ROWS.items():
        for _, width in build.pruned((_WIDE, width) for width in _ABLATION_WIDTHS):
            _add_validated(build, row, width, build.over_seeds(make, _WIDE, width))
    return build


def _add_validated(build: Builder, row: str, width: int, jobs: tuple[Job, ...]) -> None:
    attacks = tuple(_validated(build.scale, job) for job in jobs)
    quantities = (Quantity("natural", attacks, "clean"), Quantity("AutoAttack", attacks, "auto_attack"))
    build.cells.append(Cell(row, f"w={width}", quantities, jobs))


def _validated(scale: Scale, network: Job) -> Job:
    """AutoAttack on validation images, half as many as elsewhere: parts of a recipe are not chosen on the test set."""
    attack = [f"--auto_attack={scale.auto_attack}"]
    attack += ["--pgd_num_steps=2"] if scale.auto_attack == "none" else ["--pgd_num_steps=0"]
    flags = (*attack, f"--num_images={scale.num_images // 2}", "--split=validation")
    return evaluation_job("validation", network, flags)


def _scratch(
    scale: Scale, family: Family, kind: str, width: int, seed: int, epochs: int, more: tuple[str, ...] = ()
) -> Job:
    flags = (
        f"--pretrain_epochs={epochs}", "--sparsity=none", "--admm_epochs=0", "--retrain_epochs=0", *more,
    )  # fmt: skip
    return training_job(scale, family, kind, width, seed, flags, flagfile=FLAGFILE)
