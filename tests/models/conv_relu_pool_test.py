"""The layer against plain XLA operations written here, at ties too, and under jit, vmap and a sharded batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rap_jax.models.layers.convolution import Implementation
from rap_jax.models.layers.pool import ConvNormReluPool, ConvReluPool, conv_relu_pool

pytestmark = pytest.mark.usefixtures("optimised")

Shape = tuple[int, ...]
Arguments = tuple[jax.Array, jax.Array, jax.Array]
Layer = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

BOTH = pytest.mark.parametrize("implementation", ["cpu", "xla"])


def reference(images: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """In the paper's order: convolution, bias, ReLU, pooling."""
    hidden = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    hidden = jax.nn.relu(hidden + bias[None, None, None])
    return lax.reduce_window(hidden, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def value_and_gradients(
    function: Callable[..., jax.Array], arguments: Any, weights: jax.Array
) -> tuple[jax.Array, Any]:
    @jax.jit
    def both(*arguments: jax.Array) -> tuple[jax.Array, Any]:
        pooled, pullback = jax.vjp(function, *arguments)
        return pooled, pullback(weights)

    return both(*arguments)


def layer(implementation: Implementation) -> Layer:
    return lambda *arguments: conv_relu_pool(*arguments, implementation=implementation)


def draw(seed: int, images_shape: Shape, kernel_shape: Shape) -> tuple[Arguments, jax.Array]:
    # NumPy draws, because JAX would compile its generator anew for each shape.
    random = np.random.default_rng(seed)
    batch, height, width, _ = images_shape
    images = random.uniform(size=images_shape)
    kernel = random.normal(size=kernel_shape) / 5
    bias = random.normal(size=kernel_shape[-1:])
    weights = random.normal(size=(batch, height // 2, width // 2, kernel_shape[-1]))
    return (to_jax(images), to_jax(kernel), to_jax(bias)), to_jax(weights)


def to_jax(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.float32)


@BOTH
@pytest.mark.parametrize(
    ("images_shape", "kernel_shape"),
    [
        ((7, 28, 28, 1), (5, 5, 1, 8)),
        ((1, 14, 14, 8), (5, 5, 8, 16)),
        ((2, 6, 10, 3), (3, 3, 3, 4)),
        ((2, 8, 4, 2), (7, 7, 2, 3)),
        ((2, 4, 4, 3), (1, 1, 3, 2)),
        ((2, 6, 10, 1), (5, 5, 1, 2)),  # one channel, and no cells of 4x4
        ((2, 8, 12, 1), (3, 3, 1, 2)),
        ((2, 6, 8, 8), (5, 5, 8, 32)),  # many channels and features
    ],
)
def test_values_and_gradients_are_those_of_plain_xla(
    implementation: Implementation, images_shape: Shape, kernel_shape: Shape
) -> None:
    arguments, weights = draw(0, images_shape, kernel_shape)
    pooled, gradients = value_and_gradients(layer(implementation), arguments, weights)
    expected_pooled, expected_gradients = value_and_gradients(reference, arguments, weights)
    np.testing.assert_allclose(pooled, expected_pooled, atol=1e-5)
    for actual, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * float(jnp.abs(expected).max()))


@BOTH
def test_gradient_goes_to_the_first_of_equals(implementation: Implementation) -> None:
    # A kernel that copies the pixel makes all four outputs of every window equal.
    kernel = jnp.zeros((5, 5, 1, 1)).at[2, 2].set(1.0)
    arguments = (jnp.ones((1, 4, 6, 1)), kernel, jnp.zeros(1))
    weights = jnp.arange(1.0, 7).reshape(1, 2, 3, 1)
    _, (image_gradient, _, _) = value_and_gradients(layer(implementation), arguments, weights)
    expected = [[1, 0, 2, 0, 3, 0], [0, 0, 0, 0, 0, 0], [4, 0, 5, 0, 6, 0], [0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(image_gradient[0, :, :, 0], expected)


@BOTH
@pytest.mark.parametrize(("size", "channels", "features"), [(3, 2, 5), (5, 1, 4), (5, 1, 16), (3, 2, 16), (3, 8, 32)])
def test_every_pattern_of_ties_gives_the_gradient_of_plain_xla(
    implementation: Implementation, size: int, channels: int, features: int
) -> None:
    # Small whole numbers: sums are exact, so many windows tie, in all patterns, in every implementation.
    random = np.random.default_rng(0)
    images = to_jax(random.integers(0, 2, (4, 12, 12, channels)))
    kernel = to_jax(random.integers(-1, 2, (size, size, channels, features)))
    bias = to_jax(random.integers(-1, 2, features))
    weights = to_jax(random.integers(-9, 10, (4, 6, 6, features)))
    actual = value_and_gradients(layer(implementation), (images, kernel, bias), weights)
    expected = value_and_gradients(reference, (images, kernel, bias), weights)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@BOTH
def test_vmap_over_restarts_is_the_loop_over_restarts(implementation: Implementation) -> None:
    (_, kernel, bias), weights = draw(1, (5, 8, 8, 1), (5, 5, 1, 4))
    restarts = to_jax(np.random.default_rng(2).uniform(size=(3, 5, 8, 8, 1)))

    @jax.jit
    def image_gradient(images: jax.Array) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(layer(implementation)(x, kernel, bias) * weights))(images)

    expected = jnp.stack([image_gradient(images) for images in restarts])
    np.testing.assert_allclose(jax.vmap(image_gradient)(restarts), expected, rtol=1e-5, atol=1e-6)


def test_forward_mode_agrees_with_reverse_mode() -> None:
    (images, kernel, bias), weights = draw(3, (2, 8, 8, 1), (5, 5, 1, 4))
    direction = to_jax(np.random.default_rng(4).normal(size=images.shape))
    _, tangent = jax.jvp(lambda x: conv_relu_pool(x, kernel, bias, implementation="cpu"), (images,), (direction,))
    _, (backward, _, _) = value_and_gradients(layer("cpu"), (images, kernel, bias), weights)
    np.testing.assert_allclose(jnp.vdot(tangent, weights), jnp.vdot(backward, direction), rtol=1e-4)


@BOTH
@pytest.mark.parametrize("train", [True, False])
def test_a_norm_comes_before_relu_and_pooling(implementation: Implementation, train: bool) -> None:
    """With scales of both signs: pooled first, a channel with a negative one would take its smallest output."""
    (images, kernel, shift), weights = draw(6, (3, 8, 12, 2), (5, 5, 2, 4))
    scale = jnp.array([1.5, -1.0, 0.5, -2.0])
    mean, var = jnp.array([0.3, -0.2, 0.1, 0.4]), jnp.array([0.5, 2.0, 1.0, 0.1])
    layer = ConvNormReluPool(features=4, kernel_size=5, implementation=implementation)

    def actual(images: jax.Array, kernel: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
        params = {"kernel": kernel, "scale": scale, "shift": shift}
        variables = {"params": params, "batch_stats": {"mean": mean, "var": var}}
        outputs: Any = layer.apply(variables, images, train, mutable=["batch_stats"])
        return outputs[0]

    def expected(images: jax.Array, kernel: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
        hidden = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        moments = (hidden.mean((0, 1, 2)), hidden.var((0, 1, 2))) if train else (mean, var)
        m, v, s, t = (vector[None, None, None] for vector in (*moments, scale, shift))
        hidden = jax.nn.relu((hidden - m) / jnp.sqrt(v + 1e-5) * s + t)
        return lax.reduce_window(hidden, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    for one, other in zip(
        *(jax.tree.leaves(value_and_gradients(f, (images, kernel, scale, shift), weights)) for f in (actual, expected)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.abs(other).max()))


@BOTH
@pytest.mark.skipif(jax.device_count() < 8, reason="conftest.py gives the tests 8 CPU devices")
def test_attack_on_a_sharded_batch_gathers_nothing(implementation: Implementation) -> None:
    (images, kernel, bias), _ = draw(5, (16, 8, 8, 1), (5, 5, 1, 4))

    def attack(images: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda x: jnp.sum(conv_relu_pool(x, kernel, bias, implementation=implementation) ** 2))
        return lax.fori_loop(0, 3, lambda _, x: jnp.clip(x + 0.1 * jnp.sign(gradient(x)), 0, 1), images)

    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(images, NamedSharding(mesh, P("batch")))
    compiled = jax.jit(attack).lower(sharded).compile()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in str(compiled.as_text())
    adversarial = compiled(sharded)
    assert adversarial.addressable_shards[0].data.shape == (2, 8, 8, 1)
    np.testing.assert_allclose(adversarial, jax.jit(attack)(images), atol=1e-6)


def test_parameters_are_named_like_those_of_a_convolution() -> None:
    module = ConvReluPool(features=6, kernel_size=5)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (5, 5, 3, 6), "bias": (6,)}}
    bias = variables["params"]["bias"]
    assert 0 < jnp.abs(bias).max() <= (5 * 5 * 3) ** -0.5


def test_odd_sizes_use_xla_and_drop_the_last_row_and_column() -> None:
    (images, kernel, bias), _ = draw(6, (2, 7, 9, 1), (3, 3, 1, 2))
    actual = conv_relu_pool(images, kernel, bias)
    assert actual.shape == (2, 3, 4, 2)
    np.testing.assert_allclose(actual, reference(images, kernel, bias), atol=1e-6)
    with pytest.raises(ValueError, match=r"image size is \(7, 9\); expected even sizes; or use implementation xla"):
        conv_relu_pool(images, kernel, bias, implementation="cpu")


def test_auto_avoids_reduce_window_on_the_cpu() -> None:
    arguments, _ = draw(7, (2, 8, 8, 1), (3, 3, 1, 2))
    jaxprs = {name: str(jax.make_jaxpr(layer(name))(*arguments)) for name in ("auto", "cpu", "xla")}
    assert jaxprs["auto"] == (jaxprs["cpu"] if jax.default_backend() == "cpu" else jaxprs["xla"])
    assert "conv_general_dilated" not in jaxprs["cpu"] and "conv_general_dilated" in jaxprs["xla"]


@pytest.mark.parametrize("shape", [(4, 4, 1, 2), (3, 5, 1, 2)])
def test_even_and_oblong_kernels_are_refused(shape: Shape) -> None:
    with pytest.raises(ValueError, match="expected two equal odd numbers"):
        conv_relu_pool(jnp.zeros((1, 8, 8, 1)), jnp.zeros(shape), jnp.zeros(2))


def test_unknown_implementation_is_refused() -> None:
    unknown: Any = "fast"
    with pytest.raises(ValueError, match="implementation is 'fast'; expected one of auto, cpu, xla"):
        conv_relu_pool(jnp.zeros((1, 8, 8, 1)), jnp.zeros((3, 3, 1, 2)), jnp.zeros(2), implementation=unknown)
