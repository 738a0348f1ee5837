"""A layer's kernel and what belongs to its outputs."""

import jax
import jax.numpy as jnp
import pytest

from rap_jax.pruning.layers import kernels, leaves_by_name, leaves_of_outputs, sibling

pytestmark = pytest.mark.usefixtures("optimised")

LAYER = {"kernel": jnp.ones((3, 3, 2, 4)), "scale": jnp.ones(4), "shift": jnp.zeros(4)}
PARAMS = {
    "conv1": LAYER | {"bias": jnp.zeros(4)},
    "conv10": {"kernel": jnp.ones((1, 1, 4, 4)), "bias": jnp.zeros(4)},
    "group1": {"conv1": LAYER | {"inputs": jnp.ones(2), "square": jnp.ones((4, 4))}, "bias": jnp.ones(4)},
}


def test_names_at_any_depth() -> None:
    assert [name for name, _ in kernels(PARAMS)] == ["conv1/kernel", "conv10/kernel", "group1/conv1/kernel"]
    assert sibling("group1/conv1/scale", "kernel") == "group1/conv1/kernel"
    assert sibling("scale", "kernel") == "kernel"


@pytest.mark.parametrize("shapes_only", [False, True])
def test_what_belongs_lies_beside_and_has_one_number_per_output(shapes_only: bool) -> None:
    leaves = leaves_by_name(jax.eval_shape(lambda: PARAMS) if shapes_only else PARAMS)
    assert leaves_of_outputs("conv1/kernel", leaves) == ["conv1/bias", "conv1/scale", "conv1/shift"]
    assert leaves_of_outputs("conv1/scale", leaves) == ["conv1/bias", "conv1/shift"]
    assert leaves_of_outputs("conv10/kernel", leaves) == ["conv10/bias"]
    assert leaves_of_outputs("group1/conv1/kernel", leaves) == ["group1/conv1/scale", "group1/conv1/shift"]


def test_weights_of_other_names_own_what_lies_beside_if_they_are_alone() -> None:
    assert (
        leaves_of_outputs("w1", {"w1": jnp.ones((3, 4)), "b1": jnp.ones(4), "w2": jnp.ones((3, 4)), "b2": jnp.ones(4)})
        == []
    )
    assert leaves_of_outputs("conv/w", {"conv/b": jnp.ones(4), "conv/w": jnp.ones((3, 4)), "b": jnp.ones(4)}) == [
        "conv/b"
    ]
    assert leaves_of_outputs("weight", {"weight": jnp.ones((4, 4)), "bias": jnp.ones(4)}) == []
    assert leaves_of_outputs("kernel", {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}) == ["bias"]
