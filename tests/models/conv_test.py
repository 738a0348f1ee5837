"""The convolution: both implementations and their gradients against NumPy, under vmap, in loops and on many devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy_networks
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rap_jax.models.layers.convolution import Implementation
from rap_jax.models.layers.initializers import kernel_initializer
from rap_jax.models.layers.linear import Conv, ConvNorm, conv2d

pytestmark = pytest.mark.usefixtures("optimised")

BOTH = pytest.mark.parametrize("implementation", ["cpu", "xla"])


def whole_numbers(shape: tuple[int, ...], seed: int) -> jax.Array:
    """Small enough that every sum is exact, so that implementations must agree to the last bit."""
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, shape), jnp.float32)


def numpy_gradients(
    images: np.ndarray, kernel: np.ndarray, weights: np.ndarray, stride: int, padding: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of sum(weights * convolution), by walking over every output and every tap."""
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    to_padded, to_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    size = len(kernel)
    for i, j in np.ndindex(*weights.shape[1:3]):
        window = (slice(None), slice(stride * i, stride * i + size), slice(stride * j, stride * j + size))
        to_padded[window] += np.einsum("nf,ijcf->nijc", weights[:, i, j], kernel)
        to_kernel += np.einsum("nf,nijc->ijcf", weights[:, i, j], padded[window])
    height, width = images.shape[1:3]
    return to_padded[:, padding : padding + height, padding : padding + width], to_kernel


# Kernel size, stride, padding: what the networks have, and what they have not.
GEOMETRIES = [
    *((1, 1, 0), (3, 1, 1), (5, 1, 0), (1, 2, 0), (3, 2, 1)),
    *((2, 1, 1), (3, 1, 0), (3, 1, 2), (1, 1, 1), (1, 2, 1), (2, 2, 0), (3, 2, 0), (3, 2, 2), (5, 2, 1), (5, 2, 2)),
    *((3, 3, 1), (2, 3, 0), (5, 3, 2)),
]


@pytest.mark.parametrize(
    ("implementation", "size", "stride", "padding"),
    [*(("cpu", *geometry) for geometry in GEOMETRIES), ("xla", 3, 1, 1), ("xla", 3, 2, 1)],
)
def test_values_and_gradients_are_those_of_numpy(
    implementation: Implementation, size: int, stride: int, padding: int
) -> None:
    images, kernel = whole_numbers((2, 7, 8, 3), 0), whole_numbers((size, size, 3, 4), 1)
    expected = numpy_networks.conv(np.asarray(images), np.asarray(kernel), stride, padding)
    weights = whole_numbers(expected.shape, 2)

    @jax.jit
    def both(*arguments: jax.Array) -> Any:
        convolve: Callable[..., jax.Array] = lambda images, kernel: conv2d(
            images, kernel, stride=stride, padding=padding, implementation=implementation
        )
        outputs, pull_back = jax.vjp(convolve, *arguments)
        return outputs, *pull_back(weights)

    actual = both(images, kernel)
    gradients = numpy_gradients(np.asarray(images), np.asarray(kernel), np.asarray(weights), stride, padding)
    jax.tree.map(np.testing.assert_array_equal, actual, (expected, *gradients))


@pytest.mark.parametrize(("batch", "part_size", "num_parts"), [(6, 1, 2), (8, 1, 8), (8, 8 * 96 // 4, 4), (5, 1, 1)])
def test_kernel_gradients_of_parts_add_up(
    monkeypatch: pytest.MonkeyPatch, batch: int, part_size: int, num_parts: int
) -> None:
    images, kernel = whole_numbers((batch, 6, 8, 2), 0), whole_numbers((3, 3, 2, 4), 1)
    weights = whole_numbers((batch, 3, 4, 4), 2)
    total = lambda kernel: (conv2d(images, kernel, stride=2, padding=1, implementation="cpu") * weights).sum()
    whole = str(jax.make_jaxpr(jax.grad(total))(kernel))
    monkeypatch.setattr("rap_jax.models.layers.convolution._PART_SIZE", part_size)
    parts = str(jax.make_jaxpr(jax.grad(total))(kernel))
    assert parts.count("conv_general_dilated[") - whole.count("conv_general_dilated[") == num_parts - 1
    expected = numpy_gradients(np.asarray(images), np.asarray(kernel), np.asarray(weights), 2, 1)[1]
    np.testing.assert_array_equal(jax.grad(total)(kernel), expected)


@BOTH
@pytest.mark.parametrize("stride", [1, 2])
def test_vmap_over_restarts_is_the_loop_over_restarts(implementation: Implementation, stride: int) -> None:
    kernel, restarts = whole_numbers((3, 3, 2, 4), 0), whole_numbers((3, 2, 6, 6, 2), 1)

    @jax.jit
    def image_gradient(images: jax.Array) -> jax.Array:
        def loss(images: jax.Array) -> jax.Array:
            outputs = conv2d(images, kernel, stride=stride, padding=1, implementation=implementation)
            return jnp.square(outputs).sum()

        return jax.grad(loss)(images)

    expected = jnp.stack([image_gradient(images) for images in restarts])
    np.testing.assert_array_equal(jax.vmap(image_gradient)(restarts), expected)


@BOTH
@pytest.mark.skipif(jax.device_count() < 8, reason="conftest.py gives the tests 8 CPU devices")
def test_attack_on_a_sharded_batch_gathers_nothing(implementation: Implementation) -> None:
    images, kernel = jnp.abs(whole_numbers((16, 6, 6, 2), 0)) / 3, whole_numbers((3, 3, 2, 4), 1) / 3

    def attack(images: jax.Array) -> jax.Array:
        def loss(images: jax.Array) -> jax.Array:
            hidden = conv2d(images, kernel, padding=1, implementation=implementation)
            return (
                conv2d(hidden, kernel.swapaxes(2, 3), stride=2, padding=1, implementation=implementation) ** 2
            ).sum()

        return lax.fori_loop(0, 3, lambda _, x: jnp.clip(x + 0.1 * jnp.sign(jax.grad(loss)(x)), 0, 1), images)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(images, NamedSharding(mesh, P("data")))
    compiled = jax.jit(attack).lower(sharded).compile()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in str(compiled.as_text())
    np.testing.assert_allclose(compiled(sharded), jax.jit(attack)(images), atol=1e-6)


def test_the_form_for_the_cpu_hides_its_flipped_kernel_from_xla() -> None:
    images, kernel = jnp.ones((2, 6, 6, 2)), jnp.ones((3, 3, 2, 4))

    def jaxpr(implementation: Implementation) -> str:
        gradient = jax.grad(lambda images: conv2d(images, kernel, stride=2, implementation=implementation).sum())
        return str(jax.make_jaxpr(gradient)(images))

    assert jaxpr("auto") == (jaxpr("cpu") if jax.default_backend() == "cpu" else jaxpr("xla"))
    # XLA's own form spreads the gradients out by inserting zeros; without the barrier it would return to it.
    assert "optimization_barrier" in jaxpr("cpu") and "lhs_dilation=(2, 2)" not in jaxpr("cpu")
    assert "optimization_barrier" not in jaxpr("xla") and "lhs_dilation=(2, 2)" in jaxpr("xla")


def test_a_layer_and_its_norm_share_their_place() -> None:
    images = jnp.ones((1, 6, 6, 3))
    bare = Conv(4, kernel_size=3, kernel_init=kernel_initializer("pytorch"), use_bias=True)
    variables = bare.init(jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (3, 3, 3, 4), "bias": (4,)}}
    assert bare.apply(variables, images).shape == (1, 4, 4, 4)

    bound = 27**-0.5
    assert 0 < jnp.abs(variables["params"]["bias"]).max() <= bound

    both = ConvNorm(4, kernel_size=3, kernel_init=kernel_initializer("pytorch"), stride=2, padding=1)
    variables = both.init(jax.random.key(0), images, train=False)
    assert (variables["params"]["scale"] == 1).all() and (variables["params"]["shift"] == 0).all()
    assert (variables["batch_stats"]["mean"] == 0).all() and (variables["batch_stats"]["var"] == 1).all()
    assert jax.tree.map(jnp.shape, variables) == {
        "params": {"kernel": (3, 3, 3, 4), "scale": (4,), "shift": (4,)},
        "batch_stats": {"mean": (4,), "var": (4,)},
    }
    assert both.apply(variables, images, train=False).shape == (1, 3, 3, 4)


def test_a_bias_is_added_to_every_pixel() -> None:
    layer = Conv(2, kernel_size=1, kernel_init=kernel_initializer("pytorch"), use_bias=True)
    variables = {"params": {"kernel": jnp.zeros((1, 1, 1, 2)), "bias": jnp.asarray([1.0, -2.0])}}
    np.testing.assert_array_equal(layer.apply(variables, jnp.ones((1, 2, 2, 1))), np.full((1, 2, 2, 2), [1.0, -2.0]))


def test_impossible_arguments_are_refused() -> None:
    images = jnp.zeros((1, 4, 6, 1))
    with pytest.raises(ValueError, match=r"kernel size is \(3, 5\); expected two equal numbers"):
        conv2d(images, jnp.zeros((3, 5, 1, 1)))
    with pytest.raises(ValueError, match=r"image size is \(4, 6\); expected 5 pixels or more each way"):
        conv2d(images, jnp.zeros((7, 7, 1, 1)), padding=1)
    unknown: Any = "cells"
    with pytest.raises(ValueError, match="implementation is 'cells'; expected one of auto, cpu, xla"):
        conv2d(images, jnp.zeros((3, 3, 1, 1)), implementation=unknown)
