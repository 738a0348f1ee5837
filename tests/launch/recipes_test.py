"""Every recipe runs: two steps of each of its stages, on its network and kind of images, from flags to results."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from repository import ROOT
from tiers import nightly_but

from launch.configs import config_from_flags
from launch.flagfiles import recipes
from rap_jax.config import STAGES, AttackConfig, ComputeConfig, RunConfig, StageConfig
from rap_jax.data import Dataset, Split
from rap_jax.evaluation.accuracy import Accuracy
from rap_jax.models import create_model
from rap_jax.training import pipeline
from rap_jax.training.optimizer import plan_stage, specs_from_config

SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3), "svhn": (32, 32, 3)}
# Evaluation takes as long to compile as training does: it is left out where another recipe does the same.
EVALUATED = {"lenet_mnist", "lenet_cifar10", "resnet18_cifar10"}
# The form for the CPU takes longer to compile: once for each network, as users have it there.
AS_ON_A_CPU = {*EVALUATED, "vgg16_cifar10", "wide_resnet28_cifar10"}
IN_CI = {"lenet_mnist", "lenet_mnist_inherited", "resnet18_cifar10_post_pruning"}
NEEDS_A_RUN = {"lenet_mnist_inherited": "lenet_mnist_paper"}


def dataset_like(name: str) -> Dataset:
    """Noise in the shape of the data set's images."""
    generator = np.random.default_rng(0)

    def split(num_examples: int) -> Split:
        images = generator.integers(0, 256, (num_examples, *SHAPES[name]), np.uint8)
        return Split(images, (np.arange(num_examples) % 10).astype(np.int32))

    return Dataset(name, split(16), split(8), split(8), 10, "0" * 64)


def brief(stage: StageConfig) -> StageConfig:
    ramp = min(0.5, stage.epsilon_ramp_epochs)
    return dataclasses.replace(stage, num_epochs=min(1, stage.num_epochs), epsilon_ramp_epochs=ramp)


def quick(attack: AttackConfig) -> AttackConfig:
    return dataclasses.replace(attack, num_steps=1)


def shortened(config: RunConfig, **changes: Any) -> RunConfig:
    """The recipe at width 1, two steps of each stage it has, a dual step between them, attacks of one step."""
    train = config.train
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, width=1),
        train=dataclasses.replace(train, attack=train.attack and quick(train.attack)),
        select_attack=quick(config.select_attack),
        report_attack=quick(config.report_attack),
        prune=dataclasses.replace(config.prune, dual_interval=1.0, dual_interval_unit="steps"),
        pretrain=brief(config.pretrain),
        admm=brief(config.admm),
        retrain=brief(config.retrain),
        batch_size=8,
        eval_batch_size=8,
        steps_per_epoch=2,
        **changes,
    )


def run_recipe(name: str, folder: Path, **changes: Any) -> tuple[RunConfig, dict[str, Any]]:
    config = shortened(config_from_flags(tiny.parse_flags(f"--flagfile={name}")), **changes)
    dataset, devices = dataset_like(config.data.dataset), jax.devices()[:1]
    compute = ComputeConfig(implementation="auto" if name in AS_ON_A_CPU else "xla")
    return config, pipeline.run(config, dataset, folder, output=tiny.AS_USUAL, devices=devices, compute=compute)


@pytest.mark.e2e
@pytest.mark.parametrize("name", nightly_but(IN_CI, recipes()))
def test_recipe_runs_for_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in EVALUATED:
        stub: Any = lambda _, attack, *a, **b: lambda *c: Accuracy(1, 1, 8, attack)
        monkeypatch.setattr(pipeline, "make_evaluator", stub)
    changes: dict[str, Any] = {}
    if name in NEEDS_A_RUN:
        run_recipe(NEEDS_A_RUN[name], tmp_path / "other")
        given = config_from_flags(tiny.parse_flags(f"--flagfile={name}")).start
        changes["start"] = dataclasses.replace(given, run_dir=str(tmp_path / "other"))
    config, results = run_recipe(name, tmp_path / "run", **changes)
    assert config.name == name and results["dataset"] == config.data.dataset
    trained = [stage for stage in STAGES if config.stage(stage).num_epochs > 0]
    assert [stage for stage in results["stages"] if stage != "start"] == trained
    steps = [(m["stage"], m["step"]) for m in tiny.metrics_of(tmp_path / "run") if m["kind"] == "validation"]
    assert steps == [(stage, 2) for stage in trained] and trained
    pruned = bool(config.prune.sparsity) or name in NEEDS_A_RUN
    assert (results["sparsity"]["overall"]["zeros"] > 0) is pruned
    assert results["sparsity"]["overall"]["leftovers"] == 0
    assert results["test"]["attack"]["epsilon"] == config.report_attack.epsilon


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_prunes_layers_of_its_network(name: str) -> None:
    """At full width, by shapes alone."""
    config = config_from_flags(tiny.parse_flags(f"--flagfile={name}"))
    shape = SHAPES[config.data.dataset]
    model = create_model(config.model, input_shape=shape, num_classes=10, implementation="xla")
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    specs = specs_from_config(config.prune, params, output_layer=model.output_layer)
    assert bool(specs) is bool(config.prune.sparsity)


@pytest.mark.parametrize("name", recipes())
def test_lengths_of_a_recipe_fit_together(name: str) -> None:
    config = config_from_flags(tiny.parse_flags(f"--flagfile={name}"))
    sizes = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "svhn": 73_257}
    num_examples = round(sizes[config.data.dataset] * (1 - config.data.validation_fraction))
    for stage in [stage for stage in STAGES if config.stage(stage).num_epochs]:
        assert plan_stage(config, stage, num_examples).learning_rate(0) >= 0


def test_the_docs_list_every_recipe() -> None:
    text = (ROOT / "docs/guides/recipes.md").read_text()
    missing = [name for name in recipes() if f"| `{name}` |" not in text]
    assert not missing
