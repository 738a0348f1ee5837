"""The paper's baselines are runs with stages left out: dense, post-pruning, one-shot."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from rap_jax.config import PruneConfig, RunConfig, StageConfig, TrainConfig
from rap_jax.runs.network import load_network
from rap_jax.training import pipeline

pytestmark = pytest.mark.e2e

CONFIG = tiny.tiny_config()
SHORT = dataclasses.replace(CONFIG.pretrain, num_epochs=1)
NO_STAGE = StageConfig(0)
NOT_PRUNED = PruneConfig(sparsity=())


def config_with(**changes: Any) -> RunConfig:
    return dataclasses.replace(CONFIG, **({"pretrain": SHORT, "admm": NO_STAGE, "retrain": NO_STAGE} | changes))


def assert_same(actual: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_dense_network_has_one_stage_and_no_cut(tmp_path: Path) -> None:
    found = tiny.run_and_watch(tmp_path / "run", config_with(prune=NOT_PRUNED))
    assert list(found.outcomes) == list(found.results["stages"]) == ["pretrain"]
    assert "cut" not in found.results["stages"]["pretrain"]
    assert found.results["sparsity"]["overall"]["zeros"] == 0
    assert_same(load_network(tmp_path / "run").weights, found.outcomes["pretrain"].weights)
    assert set(found.results["seconds"]) == {"pretrain", "validation", "test", "total"}
    assert "Dense, the network classifies" in (tmp_path / "run" / "report.md").read_text()


def test_natural_training_attacks_nothing_but_the_report(tmp_path: Path) -> None:
    config = config_with(prune=NOT_PRUNED, train=TrainConfig(None))
    natural = tiny.run_and_watch(tmp_path / "natural", config)
    adversarial = tiny.run_and_watch(tmp_path / "adversarial", config_with(prune=NOT_PRUNED))
    assert {m["epsilon"] for m in tiny.metrics_of(tmp_path / "natural") if m["kind"] == "train"} == {0.0}
    assert natural.results["test"]["attack"]["epsilon"] == CONFIG.report_attack.epsilon
    ours, theirs = (run.outcomes["pretrain"].weights.params["fc1"]["kernel"] for run in (natural, adversarial))
    assert (ours != theirs).any()


def test_post_pruning_cuts_the_pretrained_network_and_retrains_it(tmp_path: Path) -> None:
    found = tiny.run_and_watch(tmp_path / "run", config_with(retrain=SHORT))
    assert list(found.results["stages"]) == ["pretrain", "retrain"]
    before, start = found.outcomes["pretrain"].weights.params, found.starts["retrain"].params
    for layer in ("conv1", "conv2", "fc1"):
        kernel = np.asarray(start[layer]["kernel"])
        alive = (kernel != 0).reshape(-1, kernel.shape[-1]).any(0)
        size = np.square(np.asarray(before[layer]["kernel"])).reshape(-1, kernel.shape[-1]).sum(0)
        assert size[alive].min() >= size[~alive].max()  # by magnitude
        assert_same(kernel[..., alive], np.asarray(before[layer]["kernel"])[..., alive])
    assert found.results["sparsity"]["layers"]["fc1/kernel"]["filters_kept"] == 16


def test_one_shot_pruning_reports_the_cut_network(tmp_path: Path) -> None:
    found = tiny.run_and_watch(tmp_path / "run", config_with())
    assert list(found.results["stages"]) == ["pretrain"]
    saved = load_network(tmp_path / "run").weights.params
    kernel, dense = (np.asarray(p["fc1"]["kernel"]) for p in (saved, found.outcomes["pretrain"].weights.params))
    assert (kernel == 0).all(0).sum() == 48 and (dense != 0).all()
    assert_same(kernel[kernel != 0], dense[kernel != 0])
    assert found.results["sparsity"]["layers"]["fc1/kernel"]["filters_kept"] == 16


def test_admm_without_a_retrain_ends_with_its_cut(tmp_path: Path) -> None:
    admm = dataclasses.replace(CONFIG.admm, num_epochs=2)
    found = tiny.run_and_watch(tmp_path / "run", config_with(admm=admm))
    assert list(found.results["stages"]) == ["pretrain", "admm"]
    assert found.results["sparsity"]["layers"]["fc1/kernel"]["filters_kept"] == 16


def test_nothing_to_do_is_refused() -> None:
    with pytest.raises(ValueError, match="num_epochs is 0; expected 1 or more in some stage"):
        config_with(pretrain=NO_STAGE)


def test_a_penalty_with_nothing_to_pull_is_refused(tmp_path: Path) -> None:
    config = config_with(admm=SHORT, prune=PruneConfig(sparsity=(("conv*", 0.0),)))
    with pytest.raises(ValueError, match=r"sparsity is .* expected a ratio above 0 for some layer, or --admm_epochs=0"):
        pipeline.run(config, tiny.tiny_dataset(), tmp_path / "run")
