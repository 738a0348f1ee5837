"""Counting zeros."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from rap_jax.pruning.masks import count_sparsity
from rap_jax.pruning.projections import BatchNormFilter, Column, Filter, Irregular
from rap_jax.pruning.specs import project_tree

pytestmark = pytest.mark.usefixtures("optimised")


def test_counts_kernels_and_nothing_else() -> None:
    kernel = -jnp.ones((3, 3, 2, 4)).at[..., 1].set(0.0).at[0, 0, 0, 2].set(0.0)
    dense = jnp.ones((5, 2)).at[3].set(0.0)
    found = count_sparsity({"conv1": {"kernel": kernel, "bias": jnp.zeros(4)}, "fc1": {"kernel": dense}})
    conv1 = found["layers"]["conv1/kernel"]
    assert (conv1["size"], conv1["zeros"], conv1["sparsity"]) == (72, 19, 19 / 72)
    assert (conv1["filters"], conv1["filters_kept"], conv1["columns"], conv1["columns_kept"]) == (4, 3, 18, 18)
    assert (found["layers"]["fc1/kernel"]["columns_kept"], found["layers"]["fc1/kernel"]["filters_kept"]) == (4, 2)
    assert found["overall"] == {"size": 82, "zeros": 21, "sparsity": 21 / 82, "leftovers": 0}


def test_leftovers_are_what_removed_filters_would_still_send() -> None:
    kernel = jnp.ones((1, 1, 2, 4)).at[..., :2].set(0.0)
    conv = {"kernel": kernel, "bias": jnp.zeros(4), "scale": jnp.ones(4), "shift": jnp.array([0.0, -1.0, 1.0, 1.0])}
    params = {"group1_block0": {"conv1": conv}, "fc1": {"kernel": kernel.reshape(2, 4), "bias": jnp.ones(4)}}
    found = count_sparsity(params)
    assert found["layers"]["group1_block0/conv1/kernel"]["leftovers"] == 3  # two scales and a shift
    assert found["layers"]["fc1/kernel"]["leftovers"] == 2
    assert found["overall"]["leftovers"] == 5
    assert json.loads(json.dumps(found)) == found


def test_a_cut_leaves_no_leftovers() -> None:
    kernel = jax.random.normal(jax.random.key(0), (2, 2, 2, 4)).at[..., 1].set(0.0)
    params = {
        "conv1": {"kernel": kernel, "bias": jnp.ones(4), "scale": jnp.array([1.0, 9.0, 2.0, 3.0]), "shift": jnp.ones(4)}
    }
    assert count_sparsity(params)["overall"]["leftovers"] == 3  # and its scale would not choose this filter
    for kind, weights in [(Filter, "kernel"), (Irregular, "kernel"), (Column, "kernel"), (BatchNormFilter, "scale")]:
        cut = jax.jit(functools.partial(project_tree, {f"conv1/{weights}": kind(0.5)}))(params)
        assert count_sparsity(cut)["overall"]["leftovers"] == 0
