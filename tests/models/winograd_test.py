"""The convolution with fewer multiplications, against NumPy, its own tables and exact gradients, in any parts."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_networks
import pytest

from rap_jax.models.layers import winograd
from rap_jax.models.layers.linear import conv2d
from rap_jax.models.layers.winograd import has_winograd_form, winograd_conv

pytestmark = pytest.mark.usefixtures("optimised")

SIZES = pytest.mark.parametrize("size", [3, 5])
ONE = ((1, 1), (1, 1))


def draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@SIZES
def test_tables_are_two_outputs_of_a_convolution(size: int) -> None:
    """Products of sums add up to kernel[i] pixel[j + i], for every kernel and pixels."""
    table = winograd._TABLES[size]
    found = np.einsum("jt,tk,tp->jkp", table.outputs, table.kernel, table.pixels)
    expected = np.zeros((2, size, size + 1))
    for output in range(2):
        expected[output, range(size), range(output, output + size)] = 1
    np.testing.assert_allclose(found, expected, atol=1e-14)


@SIZES
@pytest.mark.parametrize("sides", [ONE, ((0, 2), (2, 0)), ((2, 2), (1, 3))])
def test_values_are_those_of_numpy(size: int, sides: winograd.Sides) -> None:
    height, width = (20 + size - 1 - sum(side) for side in sides)
    images, kernel = draw((3, height, width, 4), 0), draw((size, size, 4, 6), 1)
    padded = np.pad(images, ((0, 0), *sides, (0, 0)))
    expected = numpy_networks.conv(padded.astype(np.float64), kernel.astype(np.float64), 1, 0)
    assert expected.shape == (3, 20, 20, 6)
    np.testing.assert_allclose(winograd_conv(jnp.asarray(images), jnp.asarray(kernel), sides), expected, atol=5e-5)


@pytest.mark.parametrize(("batch", "num_parts"), [(8, 8), (12, 4), (5, 1)])
def test_parts_of_the_batch_change_nothing(monkeypatch: pytest.MonkeyPatch, batch: int, num_parts: int) -> None:
    images, kernel = jnp.asarray(draw((batch, 6, 8, 4), 0)), jnp.asarray(draw((3, 3, 4, 4), 1))
    whole = winograd_conv(images, kernel, ONE)
    monkeypatch.setattr(winograd, "_MIN_ROWS", 1)
    table = winograd._TABLES[3]._replace(part_size=1)
    monkeypatch.setattr(winograd, "_TABLES", {3: table})
    assert winograd._num_parts(batch, 12, (4, 4, 4, 4), table.part_size) == num_parts
    np.testing.assert_allclose(winograd_conv(images, kernel, ONE), whole, atol=1e-5)


def test_few_rows_are_not_divided() -> None:
    many, few = (winograd._num_parts(64, tiles, (4, 4, 64, 64), part_size=1) for tiles in (256, 4))
    assert many == 64 and few == 1


@SIZES
def test_gradients_are_as_close_to_exact_ones_as_those_of_xla(size: int) -> None:
    """A layer with enough channels for this form, in a chain whose errors add up."""
    images, kernels = draw((2, 8, 8, 32), 0), [draw((size, size, 32, 32), seed) / (6 * size) for seed in (1, 2)]

    def image_gradient(implementation: str, dtype: type) -> np.ndarray:
        def loss(images: jax.Array) -> jax.Array:
            for kernel in kernels:
                images = jnp.tanh(conv2d(images, jnp.asarray(kernel, dtype), padding=size // 2, **form))
            return (images**2).sum()

        form = {"implementation": implementation}
        return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(images, dtype)))

    with jax.enable_x64(True):
        exact = image_gradient("xla", np.float64)
    errors = {name: np.abs(image_gradient(name, np.float32) - exact).max() for name in ("cpu", "xla")}
    assert errors["cpu"] <= max(4 * errors["xla"], 1e-6) and errors["cpu"] < 1e-5 * np.abs(exact).max()


def test_the_shapes_it_is_for() -> None:
    assert has_winograd_form(3, 4, 6) and has_winograd_form(5, 2, 2)
    assert not any((has_winograd_form(3, 5, 6), has_winograd_form(3, 4, 7), has_winograd_form(4, 4, 4)))

    def num_products(channels: int, features: int, size: int, height: int, stride: int = 1) -> int:
        shapes = [(1, height, 8, channels), (size, size, channels, features)]
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        convolve = lambda *xs: conv2d(*xs, padding=size // 2, stride=stride, implementation="cpu")
        return str(jax.make_jaxpr(convolve)(*arguments)).count("dot_general[")

    assert num_products(32, 32, 3, 8) >= 16 and num_products(32, 64, 5, 8) >= 36
    for other in ((16, 32, 3, 8), (32, 16, 3, 8), (32, 32, 3, 7), (32, 32, 1, 8)):
        assert num_products(*other) == 0
    assert num_products(32, 32, 3, 8, stride=2) == 0
