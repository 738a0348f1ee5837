"""Whole runs of every method of pruning: exact counts, kept to the end; resumed, of several seeds, in pieces."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
import tiny
from tiers import nightly_but

from rap_jax.config import ComputeConfig, PruneConfig, RunConfig, StageConfig, StartConfig
from rap_jax.pruning.layers import kernels
from rap_jax.runs.network import load_network
from rap_jax.training import pipeline
from rap_jax.training.pipeline import OneRun
from rap_jax.training.seeds import run_seeds

pytestmark = pytest.mark.e2e

CASES = [
    ("hydra", "filter", "layer"),
    ("harp", "irregular", "global"),
    ("harp", "filter", "global"),
    ("twinrep", "irregular", "global"),
    ("flyingbird", "irregular", "layer"),
    ("magnitude", "column", "layer"),
    ("random", "filter", "layer"),
    ("hydra", "irregular", "lamp"),
    ("flyingbird", "irregular", "erk"),
]
IN_CI = set(CASES) - {("harp", "filter", "global"), ("magnitude", "column", "layer")}


def cases(kept: Iterable[Any], all_cases: Iterable[Any]) -> Any:
    """The others come at night."""
    values = nightly_but({(case,) for case in kept}, [(case,) for case in all_cases])
    return pytest.mark.parametrize(("case",), values, ids="-".join)


def config_of(method: Any, structure: Any, budget: Any, **changes: Any) -> RunConfig:
    base = tiny.tiny_config()
    prune = PruneConfig(structure, (("*", 0.5),), budget, method=method, flyingbird_interval=0.34)
    stage = dataclasses.replace(base.admm, num_epochs=2)
    return dataclasses.replace(base, prune=prune, pretrain=stage, admm=stage, retrain=stage, **changes)


def zeros_of(params: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(kernel) == 0 for name, kernel in kernels(params)}


@cases(IN_CI, CASES)
def test_what_a_method_removes_stays_gone_and_is_as_many_as_asked(tmp_path: Path, case: tuple[str, str, str]) -> None:
    found = tiny.run_and_watch(tmp_path / "run", config_of(*case))
    pruned, cut = (zeros_of(weights.params) for weights in (found.outcomes["admm"].weights, found.starts["retrain"]))
    final = zeros_of(load_network(tmp_path / "run").weights.params)
    chex.assert_trees_all_equal(pruned, cut, final)
    # Under `filter` the 640 of 1,914 weights of the output layer are left out; fc1 and conv1 have odd columns.
    asked = {"filter": 637, "irregular": 957, "column": sum(zeros.sum() for zeros in cut.values())}
    assert sum(zeros.sum() for zeros in final.values()) == asked[case[1]]
    assert found.results["sparsity"]["overall"]["leftovers"] == 0
    again = tiny.run_and_watch(tmp_path / "run", config_of(*case))
    assert again.results == found.results and not again.starts
    report = (tmp_path / "run" / "report.md").read_text()
    assert case[0] in report.lower() and "ADMM" not in report


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    stage = dataclasses.replace(tiny.tiny_config().admm, num_epochs=3)
    config = dataclasses.replace(config_of(*CASES[4]), pretrain=stage, admm=stage, retrain=stage)
    whole = tiny.run_and_watch(tmp_path / "whole", config, output=tiny.EVERY_STEP)
    resumed = tiny.run_and_watch(tiny.one_step_back(whole.folder, tmp_path / "resumed"), config)
    assert resumed.began == dict.fromkeys(resumed.began, tiny.STEPS - 1)
    assert tiny.digests_of(resumed.folder) == tiny.digests_of(whole.folder)
    assert tiny.without_time_and_place(resumed.results) == tiny.without_time_and_place(whole.results)


@cases([CASES[4]], [CASES[1], CASES[4], CASES[6]])
def test_seeds_in_one_process_are_those_alone(tmp_path: Path, case: tuple[str, str, str]) -> None:
    config, data, one = config_of(*case), tiny.tiny_dataset(), jax.devices()[:1]
    runs = [OneRun(dataclasses.replace(config, seed=seed), data, tmp_path / f"seed{seed}") for seed in (1, 2)]
    done, failed = run_seeds(runs, output=tiny.EVERY_LINE, devices=jax.devices()[:2])
    assert not failed
    networks = []
    for run in runs:
        alone = pipeline.run(
            run.config, data, tmp_path / f"alone{run.config.seed}", output=tiny.EVERY_LINE, devices=one
        )
        assert tiny.without_time_and_place(done[run.config.seed]) == tiny.without_time_and_place(alone)
        networks += [load_network(path).weights.params for path in (run.out_dir, tmp_path / f"alone{run.config.seed}")]
    chex.assert_trees_all_equal(networks[0], networks[1])
    chex.assert_trees_all_equal(networks[2], networks[3])
    zeros = [zeros_of(networks[place])["conv2/kernel"] for place in (0, 2)]
    assert (zeros[0] != zeros[1]).any()


@cases([CASES[1]], [CASES[0], CASES[1], CASES[3], CASES[4]])
def test_a_state_in_pieces_ends_with_the_weights_of_a_whole_one(tmp_path: Path, case: tuple[str, str, str]) -> None:
    given = {"devices": jax.devices()[:2]}
    whole = tiny.run_and_watch(tmp_path / "whole", config_of(*case), **given)
    compute = ComputeConfig(num_model_shards=2)
    pieces = tiny.run_and_watch(tmp_path / "pieces", config_of(*case), compute=compute, **given)
    for stage, outcome in whole.outcomes.items():
        chex.assert_trees_all_close(pieces.outcomes[stage].weights.params, outcome.weights.params, rtol=0, atol=1e-3)


def test_zeros_of_another_run_stay(tmp_path: Path) -> None:
    tiny.run_and_watch(tmp_path / "first", config_of("random", "irregular", "layer"))
    start = StartConfig(str(tmp_path / "first"))
    config = config_of("twinrep", "filter", "layer", start=start)
    second = tiny.run_and_watch(tmp_path / "second", dataclasses.replace(config, pretrain=StageConfig(0)))
    before = zeros_of(load_network(tmp_path / "first").weights.params)
    for params in (second.outcomes["admm"].weights.params, load_network(tmp_path / "second").weights.params):
        for name, zeros in zeros_of(params).items():
            assert (zeros >= before[name]).all()
    assert second.results["sparsity"]["layers"]["fc1/kernel"]["filters_kept"] == 32
