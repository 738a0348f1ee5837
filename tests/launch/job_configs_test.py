"""The configs of jobs: built from flags without running anything, bad flags refused by the name of the job."""

import dataclasses
from pathlib import Path

import pytest
from absl import flags

from launch.job_configs import config_of
from rap_jax.config import AttackConfig, EvaluationConfig, OptimizerConfig
from rap_jax.reproduction import recipes
from rap_jax.reproduction.recipes import MNIST, SCALES, with_paper_settings

QUICK = SCALES["quick"]
DENSE = recipes.dense(QUICK, MNIST, 2, 0)
PRUNED = recipes.pruned(QUICK, MNIST, 2, 1, 0)
ATTACKED = recipes.auto_attacked(QUICK, PRUNED)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--no_such_flag=1", "no_such_flag"),
        ("--width=wide", "width"),
        ("--width=0", "width is 0"),
        ("--flagfile=nothing", "nothing"),
        ("--pretrain_learning_rate=-1", "learning_rate is -1"),
        ("surplus", "surplus"),
    ],
)
def test_bad_flags_are_refused_by_job_and_name(flag: str, message: str) -> None:
    job = dataclasses.replace(DENSE, flags=(*DENSE.flags, flag))
    with pytest.raises(ValueError, match=message) as error:
        config_of(job)
    assert str(error.value).count(job.name) == 1


def test_bad_flags_of_an_evaluation_are_refused_too() -> None:
    with pytest.raises(ValueError, match=f"{ATTACKED.name}: .*auto_attack"):
        config_of(dataclasses.replace(ATTACKED, flags=("--auto_attack=mild",)))


def test_more_flags_win_and_those_of_the_process_stay() -> None:
    before = flags.FLAGS["width"].value
    assert config_of(DENSE, ["--width=7"]).model.width == 7
    assert config_of(DENSE).model.width == 2 and flags.FLAGS["width"].value == before
    assert config_of(PRUNED).start.run_dir == str(Path(f"out/{DENSE.folder}").absolute())


def test_an_evaluation_takes_the_threat_model_of_its_run() -> None:
    config = config_of(ATTACKED)
    assert isinstance(config, EvaluationConfig)
    attack = config_of(PRUNED).report_attack
    assert (config.norm, config.epsilon, config.num_images) == (attack.norm, attack.epsilon, 1000)


ADAM = OptimizerConfig("adam", 1e-4, "constant")
STEP = OptimizerConfig("sgd", 0.1, "step", step_epochs=(80, 150), step_factor=0.1, momentum=0.9, weight_decay=1e-4)
OF_ADMM = dataclasses.replace(STEP, learning_rate=0.01, step_epochs=(6.67, 13.33))
COSINE = OptimizerConfig("sgd", 0.01, "cosine", momentum=0.9, weight_decay=1e-4)


@pytest.mark.parametrize(
    ("family", "batch_size", "attack", "dual_interval", "epochs", "optimizers"),
    [
        ("lenet_mnist", 64, (0.3, 0.01, 40), 4, (83, 83, 83), (ADAM, ADAM, ADAM)),
        ("lenet_cifar10", 128, (8 / 255, 2 / 255, 10), 20, (300, 200, 200),
         (dataclasses.replace(STEP, learning_rate=0.01), OF_ADMM, COSINE)),
        ("resnet18_cifar10", 128, (8 / 255, 2 / 255, 10), 20, (300, 200, 200), (STEP, OF_ADMM, COSINE)),
        ("vgg16_cifar10", 128, (8 / 255, 2 / 255, 10), 20, (300, 200, 200), (STEP, OF_ADMM, COSINE)),
    ],
)  # fmt: skip
def test_the_flags_of_the_paper_are_its_settings(
    family: recipes.Family,
    batch_size: int,
    attack: tuple[float, float, int],
    dual_interval: int,
    epochs: tuple[int, int, int],
    optimizers: tuple[OptimizerConfig, ...],
) -> None:
    """Section 6 of the paper, and the authors' code where it is silent."""
    paper = with_paper_settings(QUICK)
    pruned = config_of(recipes.pruned(paper, family, 2, 1, 0))
    dense = config_of(recipes.dense(paper, family, 2, 0))
    epsilon, step_size, num_steps = attack
    pgd = AttackConfig("linf", epsilon, step_size, num_steps)
    assert pruned.batch_size == batch_size and pruned.steps_per_epoch == 0
    assert pruned.train.attack == pruned.select_attack == pruned.report_attack == pgd
    assert (dense.pretrain.num_epochs, pruned.admm.num_epochs, pruned.retrain.num_epochs) == epochs
    stages = (dense.pretrain, pruned.admm, pruned.retrain)
    assert tuple(stage.optimizer for stage in stages) == optimizers
    assert {stage.epsilon_ramp_epochs for stage in stages} == {0}
    prune = pruned.prune
    assert (prune.rho, prune.rho_growth, prune.rho_rule, prune.rescale_dual) == (1e-3, 1.3, "uniform", False)
    assert prune.dual_keeps_graph and (prune.dual_interval, prune.dual_interval_unit) == (dual_interval, "epochs")
    on_cifar10 = family != MNIST
    assert (pruned.train.augment.crop_padding, pruned.train.augment.horizontal_flip) == (4 * on_cifar10, on_cifar10)
    assert prune.reset_learning_rate == on_cifar10
    assert pruned.train.attack_batch_norm == ("running" if family.startswith("lenet") else "batch")
