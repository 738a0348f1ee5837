"""Counting zeros."""

import jax.numpy as jnp

from rap_jax.sparsity import count_sparsity


def test_counts_kernels_and_nothing_else() -> None:
    kernel = jnp.ones((3, 3, 2, 4)).at[..., 1].set(0.0).at[0, 0, 0, 2].set(0.0)
    dense = jnp.ones((5, 2)).at[3].set(0.0)
    found = count_sparsity({"conv1": {"kernel": kernel, "bias": jnp.zeros(4)}, "fc1": {"kernel": dense}})
    conv1 = found["layers"]["conv1/kernel"]
    assert (conv1["size"], conv1["zeros"], conv1["sparsity"]) == (72, 19, 19 / 72)
    assert (conv1["filters"], conv1["filters_kept"], conv1["columns"], conv1["columns_kept"]) == (4, 3, 18, 18)
    assert (found["layers"]["fc1/kernel"]["columns_kept"], found["layers"]["fc1/kernel"]["filters_kept"]) == (4, 2)
    assert found["overall"] == {"size": 82, "zeros": 21, "sparsity": 21 / 82}
