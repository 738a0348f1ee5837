"""Every structure, under both budgets, through a whole run: what the cut takes is what the retrain keeps at zero."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tiers import nightly_but

from rap_jax.config import PruneConfig
from rap_jax.evaluation.accuracy import Accuracy
from rap_jax.pruning.layers import kernels
from rap_jax.runs.network import load_network
from rap_jax.training import pipeline

pytestmark = pytest.mark.e2e

CONFIG = tiny.tiny_config()
CASES = list(itertools.product(["irregular", "filter", "column"], ["layer", "global"]))
IN_CI = {("filter", "layer"), ("column", "global")}


def zeros_of(params: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(kernel) == 0 for name, kernel in kernels(params)}


# Columns of LeNet's layers differ in size, so under one budget a little room is always left.
@pytest.mark.parametrize(("structure", "budget"), nightly_but(IN_CI, CASES))
def test_what_the_cut_takes_stays_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, structure: Any, budget: Any
) -> None:
    monkeypatch.setattr(pipeline, "make_evaluator", lambda _, attack, *a, **b: lambda *c: Accuracy(5, 5, 10, attack))
    prune = PruneConfig(structure=structure, sparsity=(("*", 0.5),), budget=budget, dual_interval=1.0)
    stage = dataclasses.replace(CONFIG.admm, num_epochs=2)
    config = dataclasses.replace(CONFIG, prune=prune, pretrain=stage, admm=stage, retrain=stage)
    found = tiny.run_and_watch(tmp_path / "run", config)
    cut, final = zeros_of(found.starts["retrain"].params), zeros_of(load_network(tmp_path / "run").weights.params)
    for name, zeros in cut.items():
        np.testing.assert_array_equal(final[name], zeros)
    share = sum(zeros.sum() for zeros in cut.values()) / sum(zeros.size for zeros in cut.values())
    # Under `filter` the 640 of 1,914 weights of the output layer are left out.
    assert share == pytest.approx(637 / 1914 if structure == "filter" else 0.5, abs=0.03)
    overall = found.results["sparsity"]["overall"]
    assert overall["zeros"] == sum(zeros.sum() for zeros in final.values()) and overall["leftovers"] == 0
    ratios = {name: float(zeros.mean()) for name, zeros in cut.items()}
    if budget == "layer":
        assert all(abs(ratio - 0.5) < 0.03 for name, ratio in ratios.items() if ratio)
    else:
        assert max(ratios.values()) - min(ratios.values()) > 0.1  # the layers compete
