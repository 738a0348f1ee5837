"""The layer against plain XLA operations written here, at ties too, and under jit, vmap and a sharded batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rap_jax.models.conv_relu_pool import ConvReluPool, conv_relu_pool

BOTH = pytest.mark.parametrize("implementation", ["cells", "xla"])


def reference(images, kernel, bias):
    """In the paper's order: convolution, bias, ReLU, pooling."""
    hidden = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    hidden = jax.nn.relu(hidden + bias[None, None, None])
    return lax.reduce_window(hidden, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def gradients(function, arguments, weights):
    return jax.jit(jax.grad(lambda *a: jnp.sum(function(*a) * weights), (0, 1, 2)))(*arguments)


def layer(implementation):
    return lambda *arguments: conv_relu_pool(*arguments, implementation=implementation)


def draw(key, images_shape, kernel_shape):
    keys = jax.random.split(jax.random.key(key), 4)
    images = jax.random.uniform(keys[0], images_shape)
    kernel = jax.random.normal(keys[1], kernel_shape) / 5
    bias = jax.random.normal(keys[2], kernel_shape[-1:])
    batch, height, width, _ = images_shape
    weights = jax.random.normal(keys[3], (batch, height // 2, width // 2, kernel_shape[-1]))
    return (images, kernel, bias), weights


@BOTH
@pytest.mark.parametrize(
    ("images_shape", "kernel_shape"),
    [
        ((7, 28, 28, 1), (5, 5, 1, 8)),
        ((1, 14, 14, 8), (5, 5, 8, 16)),
        ((2, 6, 10, 3), (3, 3, 3, 4)),
        ((2, 8, 4, 2), (7, 7, 2, 3)),
        ((2, 4, 4, 3), (1, 1, 3, 2)),
    ],
)
def test_values_and_gradients_are_those_of_plain_xla(implementation, images_shape, kernel_shape):
    arguments, weights = draw(0, images_shape, kernel_shape)
    actual = jax.jit(layer(implementation))(*arguments)
    np.testing.assert_allclose(actual, reference(*arguments), atol=1e-5)
    for ours, theirs in zip(
        gradients(layer(implementation), arguments, weights), gradients(reference, arguments, weights), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(jnp.abs(theirs).max()))


@BOTH
def test_gradient_goes_to_the_first_of_equals(implementation):
    # A kernel that copies the pixel makes all four outputs of every window equal.
    kernel = jnp.zeros((5, 5, 1, 1)).at[2, 2].set(1.0)
    image_gradient, _, _ = gradients(
        layer(implementation),
        (jnp.ones((1, 4, 6, 1)), kernel, jnp.zeros(1)),
        jnp.arange(1.0, 7).reshape(1, 2, 3, 1),
    )
    expected = [[1, 0, 2, 0, 3, 0], [0, 0, 0, 0, 0, 0], [4, 0, 5, 0, 6, 0], [0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(image_gradient[0, :, :, 0], expected)


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_every_pattern_of_ties_gives_the_gradient_of_plain_xla(implementation, seed):
    # Small whole numbers: sums are exact, so most windows tie, in all patterns, in every implementation.
    keys = jax.random.split(jax.random.key(seed), 4)
    images = jax.random.randint(keys[0], (4, 12, 12, 2), 0, 2).astype(jnp.float32)
    kernel = jax.random.randint(keys[1], (3, 3, 2, 5), -1, 2).astype(jnp.float32)
    bias = jax.random.randint(keys[2], (5,), -1, 2).astype(jnp.float32)
    weights = jax.random.randint(keys[3], (4, 6, 6, 5), -9, 10).astype(jnp.float32)
    arguments = (images, kernel, bias)
    for ours, theirs in zip(
        gradients(layer(implementation), arguments, weights), gradients(reference, arguments, weights), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@BOTH
def test_vmap_over_restarts_is_the_loop_over_restarts(implementation):
    (_, kernel, bias), weights = draw(1, (5, 8, 8, 1), (5, 5, 1, 4))
    restarts = jax.random.uniform(jax.random.key(2), (3, 5, 8, 8, 1))

    def image_gradient(images):
        return gradients(layer(implementation), (images, kernel, bias), weights)[0]

    expected = jnp.stack([image_gradient(images) for images in restarts])
    np.testing.assert_allclose(jax.vmap(image_gradient)(restarts), expected, rtol=1e-5, atol=1e-6)


def test_forward_mode_agrees_with_reverse_mode():
    (images, kernel, bias), weights = draw(3, (2, 8, 8, 1), (5, 5, 1, 4))
    direction = jax.random.normal(jax.random.key(4), images.shape)
    _, tangent = jax.jvp(lambda x: conv_relu_pool(x, kernel, bias, implementation="cells"), (images,), (direction,))
    backward = gradients(layer("cells"), (images, kernel, bias), weights)[0]
    np.testing.assert_allclose(jnp.vdot(tangent, weights), jnp.vdot(backward, direction), rtol=1e-4)


@BOTH
@pytest.mark.skipif(jax.device_count() < 8, reason="conftest.py gives the tests 8 CPU devices")
def test_attack_on_a_sharded_batch_gathers_nothing(implementation):
    (images, kernel, bias), _ = draw(5, (16, 8, 8, 1), (5, 5, 1, 4))

    def attack(images):
        gradient = jax.grad(lambda x: jnp.sum(conv_relu_pool(x, kernel, bias, implementation=implementation) ** 2))
        return lax.fori_loop(0, 3, lambda _, x: jnp.clip(x + 0.1 * jnp.sign(gradient(x)), 0, 1), images)

    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(images, NamedSharding(mesh, P("batch")))
    compiled = jax.jit(attack).lower(sharded).compile()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()
    adversarial = compiled(sharded)
    assert adversarial.addressable_shards[0].data.shape == (2, 8, 8, 1)
    np.testing.assert_allclose(adversarial, jax.jit(attack)(images), atol=1e-6)


def test_parameters_are_named_like_those_of_a_convolution():
    module = ConvReluPool(features=6, kernel_size=5)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (5, 5, 3, 6), "bias": (6,)}}
    bias = variables["params"]["bias"]
    assert 0 < jnp.abs(bias).max() <= (5 * 5 * 3) ** -0.5


def test_odd_sizes_use_xla_and_drop_the_last_row_and_column():
    (images, kernel, bias), _ = draw(6, (2, 7, 9, 1), (3, 3, 1, 2))
    actual = conv_relu_pool(images, kernel, bias)
    assert actual.shape == (2, 3, 4, 2)
    np.testing.assert_allclose(actual, reference(images, kernel, bias), atol=1e-6)
    with pytest.raises(ValueError, match=r"image size is \(7, 9\); expected even sizes; or use implementation xla"):
        conv_relu_pool(images, kernel, bias, implementation="cells")


def test_auto_avoids_reduce_window_on_the_cpu():
    arguments, _ = draw(7, (2, 8, 8, 1), (3, 3, 1, 2))
    jaxprs = {name: str(jax.make_jaxpr(layer(name))(*arguments)) for name in ("auto", "cells", "xla")}
    assert jaxprs["auto"] == (jaxprs["cells"] if jax.default_backend() == "cpu" else jaxprs["xla"])
    assert "conv_general_dilated" not in jaxprs["cells"] and "conv_general_dilated" in jaxprs["xla"]


@pytest.mark.parametrize("shape", [(4, 4, 1, 2), (3, 5, 1, 2)])
def test_even_and_oblong_kernels_are_refused(shape):
    with pytest.raises(ValueError, match="expected two equal odd numbers"):
        conv_relu_pool(jnp.zeros((1, 8, 8, 1)), jnp.zeros(shape), jnp.zeros(2))


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="implementation is 'fast'; expected one of auto, cells, xla"):
        conv_relu_pool(jnp.zeros((1, 8, 8, 1)), jnp.zeros((3, 3, 1, 2)), jnp.zeros(2), implementation="fast")
