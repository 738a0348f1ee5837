"""A budget that follows from the weights: fixed before ADMM, the same in a resumed run, one for each seed."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from numpy_networks import random_weights
from tiers import nightly_but

from rap_jax._runtime.mesh import make_mesh
from rap_jax.compaction.cut import cut
from rap_jax.config import ComputeConfig, PruneConfig, StageConfig
from rap_jax.models import create_model
from rap_jax.models.model import Weights
from rap_jax.pruning.masks import count_sparsity
from rap_jax.pruning.specs import Specs
from rap_jax.runs.network import load_network
from rap_jax.training import pipeline
from rap_jax.training.forecast import forecast
from rap_jax.training.optimizer import specs_from_config, specs_of_weights
from rap_jax.training.pipeline import OneRun
from rap_jax.training.seeds import run_seeds

LAMP = PruneConfig("irregular", (("*", 0.9),), budget="lamp", rho=0.1)
ERK = PruneConfig("filter", (("*", 0.5),), budget="erk", budget_of="multiply_adds", rho=0.1)
MODEL = create_model(tiny.tiny_config().model, input_shape=(8, 8, 1), num_classes=10, implementation="xla")


def zeros_of(params: Any) -> dict[str, int]:
    return {name: layer["zeros"] for name, layer in count_sparsity(params)["layers"].items()}


def sparsities(specs: Specs) -> dict[str, float]:
    return {name: spec.sparsity for name, spec in specs.items()}


def weights_of(seed: int) -> Weights:
    params, _ = jax.eval_shape(MODEL.init, jax.random.key(0))
    return Weights(random_weights(params, seed), {})


def test_lamp_follows_the_weights_and_erk_does_not() -> None:
    one, two = weights_of(0), weights_of(1)
    two.params["conv1"]["kernel"] *= np.linspace(0.1, 2, 25).reshape(5, 5, 1, 1)
    assert specs_of_weights(LAMP, MODEL, one) != specs_of_weights(LAMP, MODEL, two)
    assert specs_of_weights(ERK, MODEL, one) == specs_of_weights(ERK, MODEL, two)
    for budget in ("layer", "global"):
        config = PruneConfig("irregular", (("*", 0.9),), budget=budget)
        found = specs_of_weights(config, MODEL, one)
        assert found == specs_from_config(config, one.params, output_layer="fc2")
        assert {spec.budget for spec in found.values()} == {budget}


def test_a_total_that_removes_nothing_is_refused() -> None:
    config = dataclasses.replace(LAMP, sparsity=(("fc2", 1e-6),))
    with pytest.raises(ValueError, match="expected a ratio by which at least one structure is removed"):
        specs_of_weights(config, MODEL, weights_of(0))


def test_a_forecast_needs_no_weights() -> None:
    compute = ComputeConfig(implementation="xla")
    for prune in (LAMP, ERK):
        found = forecast(tiny.tiny_config(prune=prune), tiny.tiny_dataset(), make_mesh(), compute)
        assert [stage.stage for stage in found.stages] == ["pretrain", "admm", "retrain"]


@pytest.mark.e2e
@pytest.mark.parametrize("prune", nightly_but([LAMP], [LAMP, ERK]))
def test_it_is_fixed_before_admm_and_the_same_in_a_resumed_run(tmp_path: Path, prune: PruneConfig) -> None:
    config = tiny.tiny_config(prune=prune)
    found = tiny.run_and_watch(tmp_path / "whole", config, output=tiny.EVERY_STEP)
    specs = specs_of_weights(prune, MODEL, found.starts["admm"])
    assert len(set(sparsities(specs).values())) > 1
    before_retrain = zeros_of(found.starts["retrain"].params)
    assert before_retrain == zeros_of(cut(specs, MODEL, found.outcomes["admm"].weights).params)
    final = load_network(tmp_path / "whole").weights.params
    assert zeros_of(final) == before_retrain
    recorded = found.results["sparsity"]["layers"]
    assert {name: layer["zeros"] for name, layer in recorded.items()} == before_retrain
    if prune is LAMP:
        again = specs_of_weights(prune, MODEL, found.outcomes["admm"].weights)
        assert again != specs, "or the test does not see when it was fixed"
    report = (found.folder / "report.md").read_text()
    assert ("erk budget of multiply-adds" if prune is ERK else "lamp budget\n") in report

    folder = tiny.one_step_back(tmp_path / "whole", tmp_path / "resumed")
    resumed = tiny.run_and_watch(folder, config, output=tiny.EVERY_STEP)
    assert resumed.began == dict.fromkeys(("pretrain", "admm", "retrain"), tiny.STEPS - 1)
    assert tiny.digests_of(folder) == tiny.digests_of(found.folder)
    assert tiny.without_time_and_place(resumed.results) == tiny.without_time_and_place(found.results)


@pytest.mark.e2e
def test_without_admm_it_follows_from_the_weights_of_the_cut(tmp_path: Path) -> None:
    config = tiny.tiny_config(prune=LAMP, admm=StageConfig(0), retrain=StageConfig(0))
    found = tiny.run_and_watch(tmp_path / "run", config)
    weights = found.outcomes["pretrain"].weights
    expected = cut(specs_of_weights(LAMP, MODEL, weights), MODEL, weights).params
    assert zeros_of(load_network(tmp_path / "run").weights.params) == zeros_of(expected)


@pytest.mark.nightly
def test_each_seed_has_the_bits_of_a_run_alone(tmp_path: Path) -> None:
    config = tiny.tiny_config(prune=LAMP)
    of_seed = lambda seed: dataclasses.replace(config, seed=seed)
    data, given = tiny.tiny_dataset(), {"output": tiny.EVERY_LINE}
    runs = [OneRun(of_seed(seed), data, tmp_path / f"seed{seed}") for seed in (1, 2)]
    done, failed = run_seeds(runs, devices=jax.devices()[:2], **given)
    assert not failed
    layers = [{name: each["zeros"] for name, each in done[seed]["sparsity"]["layers"].items()} for seed in (1, 2)]
    assert layers[0] != layers[1]
    alone = pipeline.run(of_seed(2), data, tmp_path / "alone2", devices=jax.devices()[:1], **given)
    assert tiny.without_time_and_place(done[2]) == tiny.without_time_and_place(alone)
