"""In which settings a reproduction differs from the paper.

The paper's settings are written down here; ours are read from the results of the runs, so that a changed flag shows.
Where the paper is silent, its settings are those of the authors' code.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rap_jax._runtime.text import as_attack, as_training
from rap_jax.config import STAGES
from rap_jax.reproduce.collect import Measured
from rap_jax.reproduce.grid import all_values

Results = dict[str, Any]
_KEPT, _RUNS = "Epoch that is kept", "Runs of a cell"
_MNIST_PGD = "linf, epsilon 0.3, step 0.01, 40 steps, 1 restart, random start"
_CIFAR_PGD = "linf, epsilon 8/255, step 2/255, 10 steps, 1 restart, random start"
_DECAY = "momentum 0.9, weight decay 0.0001"
_STEPS = "learning rate times 0.1 at epochs 80, 150"
_ALL = {
    _KEPT: "the best on the test set",
    _RUNS: "1",
    "Length of an epoch": "one pass over the images",
    "Radius of the attack": "full from the first step",
    "rho": "0.001, times 1.3 at each dual step",
    "rho of a layer": "the same for all layers",
    "Scaled dual u when rho grows": "stays",
    "Gradient of the penalty": "through w and through the u of all dual steps so far",
}
_MNIST = _ALL | {
    "Data": "mnist, 60,000 training images",
    "Batch": "64",
    "Training": f"PGD, {_MNIST_PGD}",
    "Attack that is reported": _MNIST_PGD,
    "Between dual steps": "4 epochs",
    **{f"Epochs of {stage}": "83" for stage in STAGES},
    **{f"Optimizer of {stage}": "adam, learning rate 0.0001, constant" for stage in STAGES},
}
_CIFAR = _ALL | {
    "Data": "cifar10, 50,000 training images",
    "Batch": "128",
    "Training": f"PGD, {_CIFAR_PGD}; BatchNorm by the batch inside the attack; crop padding 4; horizontal flip",
    "Attack that is reported": _CIFAR_PGD,
    "Between dual steps": "20 epochs",
    "Epochs of pretrain": "300",
    "Epochs of admm": "200",
    "Epochs of retrain": "200",
    "Optimizer of pretrain": f"sgd, learning rate 0.1, {_STEPS}, {_DECAY}",
    "Optimizer of admm": f"sgd, learning rate 0.01, learning rate times 0.1 at epochs 6.67, 13.33, {_DECAY}, "
    "set back at each dual step",
    "Optimizer of retrain": f"sgd, learning rate 0.01, cosine, {_DECAY}",
}
_CIFAR_LENET = {  # it has no BatchNorm
    "Training": f"PGD, {_CIFAR_PGD}; crop padding 4; horizontal flip",
    "Optimizer of pretrain": f"sgd, learning rate 0.01, {_STEPS}, {_DECAY}",
}
# Name of the network -> setting -> the paper's.
PAPER: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"lenet_mnist": _MNIST, "lenet_cifar": _CIFAR | _CIFAR_LENET, "vgg16": _CIFAR, "resnet18": _CIFAR}
)
# Table -> setting -> what is special there; an empty text is no setting of it: the columns of B1 are optimizers.
_OF_TABLE: Mapping[str, Mapping[str, str]] = {
    "B1": {_RUNS: "10, their mean", "Epochs of pretrain": "300", "Optimizer of pretrain": ""},
}


class Difference(NamedTuple):
    """A setting that differs.

    Attributes:
      name: of the setting.
      here: ours, all that there are among the runs.
      paper: the paper's.
    """

    name: str
    here: tuple[str, ...]
    paper: str


def differences(measured: Measured) -> tuple[Difference, ...]:
    """What differs, of the runs and evaluations that are done; nothing before the first."""
    found: dict[tuple[str, str], list[str]] = {}
    special = _OF_TABLE.get(measured.table.name, {})
    for results in measured.results.values():
        given = {**PAPER.get(_network(results), {}), **special}
        for name, ours in _ours(results):
            if given.get(name) and ours != given[name]:
                found.setdefault((name, given[name]), []).append(ours)
    if found:
        seeds = max(value.num_seeds for value in all_values(measured))
        paper = special.get(_RUNS, _ALL[_RUNS])
        here = "1" if seeds == 1 else f"{seeds}, their mean"
        if here != paper:
            found[_RUNS, paper] = [here]
    return tuple(Difference(name, tuple(dict.fromkeys(here)), paper) for (name, paper), here in found.items())


def in_words(measured: Measured, found: tuple[Difference, ...]) -> str:
    """A sentence above the differences, or in place of them."""
    if not measured.results:
        return "No run is done yet."
    if not found:
        return "None that can be seen from the results."
    return "Where several are given, the runs of the table differ. Where the paper is silent, its code counts."


def is_run(results: Results) -> bool:
    """Whether these are the results of a training run, and not of an evaluation."""
    return "stages" in results


def _network(results: Results) -> str:
    about = results if is_run(results) else results.get("network", {})
    return about.get("model", {}).get("name", "")


def _ours(results: Results) -> Iterator[tuple[str, str]]:
    """The settings of a run or of an evaluation, in words; those of a stage that it has."""
    config = results["config"]
    if not is_run(results):
        if results.get("pgd"):
            yield "Attack that is reported", as_attack(results["pgd"]["attack"])
        return
    images = results["data"]["num_images"]
    yield "Data", f"{results['dataset']}, {images['train']:,} training images"
    yield _KEPT, f"the best on {images['validation']:,} validation images; the test set is read once"
    yield "Attack that is reported", as_attack(config["report_attack"])
    yield "Batch", str(config["batch_size"])
    steps = config["steps_per_epoch"]
    yield "Length of an epoch", f"{steps:,} steps" if steps else "one pass over the images"
    if config["train"]["attack"]:
        yield "Training", as_training(config["train"])
    stages = [stage for stage in STAGES if config[stage]["num_epochs"]]
    for stage in stages:
        yield from _of_stage(config, stage)
    if "admm" in stages:
        yield from _of_admm(config["prune"])


def _of_stage(config: Results, stage: str) -> Iterator[tuple[str, str]]:
    optimizer, ramp = config[stage]["optimizer"], config[stage]["epsilon_ramp_epochs"]
    yield f"Epochs of {stage}", f"{config[stage]['num_epochs']}"
    set_back = stage == "admm" and config["prune"]["reset_learning_rate"]
    yield f"Optimizer of {stage}", _optimizer(optimizer) + (", set back at each dual step" if set_back else "")
    if config["train"]["attack"] and ramp:
        yield "Radius of the attack", f"rises from 0 over the first {ramp:g} epochs of {stage}"


def _optimizer(optimizer: Results) -> str:
    schedule = optimizer["schedule"]
    if schedule == "step":
        epochs = ", ".join(f"{epoch:g}" for epoch in optimizer["step_epochs"])
        schedule = f"learning rate times {optimizer['step_factor']:g} at epochs {epochs}"
    parts = [optimizer["name"], f"learning rate {optimizer['learning_rate']:g}", schedule]
    if optimizer["name"] == "sgd":
        parts.append(f"momentum {optimizer['momentum']:g}")
    on = {"weight decay": optimizer["weight_decay"], "warmup epochs": optimizer["warmup_epochs"]}
    return ", ".join([*parts, *(f"{name} {number:g}" for name, number in on.items() if number)])


def _of_admm(prune: Results) -> Iterator[tuple[str, str]]:
    yield "rho", f"{prune['rho']:g}, times {prune['rho_growth']:g} at each dual step"
    by_layer = prune["rho_rule"] == "gradient"
    yield "rho of a layer", "follows its gradient and its weights" if by_layer else "the same for all layers"
    yield "Scaled dual u when rho grows", "is divided by the growth" if prune["rescale_dual"] else "stays"
    through = "through w and through the u of all dual steps so far"
    yield "Gradient of the penalty", through if prune["dual_keeps_graph"] else "through w alone"
    yield "Between dual steps", f"{prune['dual_interval']:g} {prune['dual_interval_unit']}"
