"""The network of a run as an evaluation attacks it: smaller where filters are gone, with the same logits."""

from pathlib import Path

import jax
import numpy as np
from exported_run import make_pruned_run, whole_logits_fn
from tiny_run import make_run

from rap_jax.evaluation.network import open_network
from rap_jax.models import num_params
from rap_jax.runs.network import load_network

IMAGES = np.random.default_rng(0).random((16, 8, 8, 1), np.float32)


def test_a_pruned_network_is_attacked_without_its_removed_filters(tmp_path: Path) -> None:
    run = make_pruned_run(tmp_path / "run")
    network = open_network(str(run))
    assert network.about["num_params_attacked"] < network.about["num_params"]
    np.testing.assert_allclose(jax.jit(network.logits_fn)(IMAGES), whole_logits_fn(run)(IMAGES), atol=1e-5)


def test_a_dense_network_is_attacked_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    network = open_network(str(run))
    assert network.fast_on_cpu and not open_network(str(run), implementation="xla").fast_on_cpu
    assert network.about["num_params_attacked"] == num_params(load_network(run).weights.params)
    np.testing.assert_allclose(jax.jit(network.logits_fn)(IMAGES), whole_logits_fn(run)(IMAGES), atol=1e-5)
