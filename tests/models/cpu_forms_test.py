"""`fast_on_cpu`: any network in the forms for the CPU has the same values and gradients, and the rest stays."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import rap_jax as rap
from rap_jax._runtime.functions import inner_jaxprs
from rap_jax.config import ModelConfig
from rap_jax.models import create_model
from rap_jax.models.layers.convolution import cpu_conv

SLOW = ("conv_general_dilated", "reduce_window_max", "reduce_window_sum")
Function = Callable[..., Any]


def names(function: Function, *arguments: Any) -> set[str]:
    """The primitives of a function, but for those inside of functions with a derivative of their own."""

    def of(jaxpr: Any) -> set[str]:
        found = {eqn.primitive.name for eqn in jaxpr.eqns}
        open_eqns = [eqn for eqn in jaxpr.eqns if not eqn.primitive.name.startswith("custom_")]
        return found.union(*(of(inner) for eqn in open_eqns for inner in inner_jaxprs(eqn)))

    return of(jax.make_jaxpr(function)(*arguments).jaxpr)


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def value_and_gradients(function: Function, *arguments: jax.Array) -> Any:
    """Of a sum of squares, so that the gradient depends on the value."""
    loss = lambda *arguments: jnp.square(function(*arguments)).sum()
    return function(*arguments), jax.grad(loss, argnums=tuple(range(len(arguments))))(*arguments)


def check_same(function: Function, *arguments: jax.Array) -> Function:
    """Values and gradients are the same up to rounding, and no slow operation is left."""
    faster = rap.fast_on_cpu(function)
    assert not names(faster, *arguments) & set(SLOW) and names(function, *arguments) & set(SLOW)
    found, expected = (jax.jit(functools.partial(value_and_gradients, f))(*arguments) for f in (faster, function))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(jnp.abs(other).max()))
    return faster


def check_untouched(function: Function, *arguments: Any) -> None:
    assert str(jax.make_jaxpr(rap.fast_on_cpu(function))(*arguments)) == str(jax.make_jaxpr(function)(*arguments))


LAYOUTS = (("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("HWNC", "IOWH", "NCWH"), ("NHWC", "OHWI", "NCHW"))


def random_conv(number: int) -> tuple[Function, jax.Array, jax.Array]:
    """A convolution with settings drawn by the number, its images and its kernel."""
    choose = np.random.default_rng(number)
    size, stride = int(choose.integers(1, 6)), int(choose.integers(1, 4))
    channels, features = (int(choose.choice([1, 2, 3, 5, 32])) for _ in range(2))
    sides = choose.integers(0, 3, (2, 2)).tolist()
    padding = (sides, "SAME", "VALID", [(1, 1), (1, 1)])[number % 4]
    layout = LAYOUTS[number // 4 % 4]
    sizes = {"N": 2, "C": channels, "I": channels, "O": features} | dict(
        zip("HW", choose.integers(5, 10, 2), strict=True)
    )
    images = draw(number, *(int(sizes[axis]) for axis in layout[0]))
    kernel = draw(number + 1, *(int((sizes | {"H": size, "W": size})[axis]) for axis in layout[1]))
    conv = lambda images, kernel: lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=layout
    )
    return conv, images, kernel


@pytest.mark.parametrize("number", range(16))
def test_a_convolution_is_the_same_in_any_layout(number: int) -> None:
    check_same(*random_conv(number))


@pytest.mark.parametrize("window", [(1, 2, 2, 1), (1, 3, 3, 1), (1, 3, 2, 1), (1, 1, 2, 4), (2, 2, 1, 1)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pooling_is_the_same(window: tuple[int, ...], padding: str, stride: int) -> None:
    strides = tuple(min(stride, size) for size in window)
    # Few different numbers: the gradient of equals has to go to the same one.
    images = jnp.round(draw(0, 2, 7, 6, 4))
    check_same(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding), images)
    check_same(lambda x: lax.reduce_window(x, 0.0, lax.add, window, strides, padding), images)


def test_nan_wins_in_a_maximum() -> None:
    images = draw(0, 1, 4, 4, 1).at[0, 1, 2, 0].set(jnp.nan)
    pool = lambda x: linen.max_pool(x, (2, 2), (2, 2))
    np.testing.assert_array_equal(rap.fast_on_cpu(pool)(images), pool(images))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = linen.relu(linen.Conv(4, (3, 3))(images))
        x = linen.max_pool(x, (3, 3), (2, 2), "SAME")
        x = linen.relu(linen.BatchNorm(use_running_average=True)(linen.Conv(6, (3, 3), 2, use_bias=False)(x)))
        x = linen.avg_pool(x + linen.Conv(6, (1, 1))(x), (2, 2), (2, 2))
        return linen.Dense(3)(x.reshape(len(x), -1))


def linen_network(images: jax.Array) -> Function:
    network = Linen()
    return functools.partial(network.apply, jax.jit(network.init)(jax.random.key(0), images))


def nnx_network(images: jax.Array) -> Function:
    rngs = nnx.Rngs(0)
    first, second = nnx.Conv(images.shape[-1], 5, (3, 3), rngs=rngs), nnx.Conv(5, 3, (2, 2), padding="VALID", rngs=rngs)
    return lambda x: second(linen.max_pool(nnx.relu(first(x)), (2, 2), (2, 2))).mean((1, 2))


def channels_first_network(images: jax.Array) -> Function:
    """One image at a time, as Equinox has it."""
    first, second = draw(1, 4, images.shape[-1], 3, 3), draw(2, 3, 4, 3, 3)
    conv = lambda x, kernel: lax.conv_general_dilated(x[None], kernel, (1, 1), [(1, 1), (1, 1)])[0]
    pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2), (1, 2, 2), "VALID")
    return jax.vmap(lambda x: conv(pool(jax.nn.relu(conv(x.transpose(2, 0, 1), first))), second).mean((1, 2)))


@pytest.mark.parametrize("network", [linen_network, nnx_network, channels_first_network])
def test_a_network_is_the_same_whoever_wrote_it(network: Callable[[jax.Array], Function]) -> None:
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    faster = check_same(network(images), images)
    many = jnp.stack([images, images[::-1]])
    np.testing.assert_allclose(jax.vmap(faster)(many)[1], faster(images)[::-1], rtol=1e-5, atol=1e-5)


class Pooled(linen.Module):
    """Convolutions with pooling behind them; in between BatchNorm with scales of both signs, or another step."""

    between: str

    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        scores = linen.Conv(5, (3, 3))(images)
        signs = lambda key, shape, dtype=jnp.float32: jax.random.normal(key, shape, dtype)
        norm = linen.BatchNorm(use_running_average=True, scale_init=signs, bias_init=signs)
        steps: dict[str, Function] = {
            "relu": linen.relu,
            "norm": lambda x: linen.relu(norm(x)),
            "tanh": lambda x: jnp.tanh(1 - x),
            "sum with its like": lambda x: x + linen.relu(x),
            "by pixel": lambda x: x * jnp.arange(x.shape[2], dtype=jnp.float32).reshape(1, 1, -1, 1),
            "used twice": lambda x: x + x.mean((1, 2), keepdims=True),
        }
        return linen.max_pool(steps[self.between](scores), (2, 2), (2, 2))


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("between", ["relu", "norm", "tanh", "sum with its like", "by pixel", "used twice"])
def test_pooling_takes_in_the_convolution_before_it(between: str, size: int) -> None:
    images, network = draw(0, 2, size, size, 3), Pooled(between)
    variables = jax.jit(network.init)(jax.random.key(1), images)
    faster = check_same(functools.partial(network.apply, variables), images)
    taken_in = size == 8 and between in ("relu", "norm", "tanh")
    assert ("custom_vjp_call" in names(faster, images)) != taken_in


KERNEL = np.asarray(draw(5, 3, 3, 2, 2))


def conv(x: jax.Array, kernel: Any = KERNEL, **settings: Any) -> jax.Array:
    given = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | settings
    return lax.conv_general_dilated(x, jnp.asarray(kernel), **given)


NESTED: dict[str, Function] = {
    "jit": jax.jit(conv),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(conv(x))),
    "scan": lambda x: lax.scan(lambda carry, _: (jnp.tanh(conv(carry)), None), x, None, 2)[0],
    "scan over kernels": lambda x: lax.scan(lambda carry, k: (conv(carry, k), None), x, jnp.stack([KERNEL] * 2))[0],
    "cond": lambda x: lax.cond(x.sum() > 0, conv, lambda x: 2 * x, x),
    "loop": lambda x: lax.fori_loop(0, 2, lambda _, x: jnp.tanh(conv(x)), x),
    "jit in checkpoint in jit": jax.jit(jax.checkpoint(jax.jit(conv))),
    "gradient": jax.grad(lambda x: jnp.square(conv(x)).sum()),
}


@pytest.mark.parametrize("name", NESTED)
def test_it_goes_into_nested_functions(name: str) -> None:
    faster = check_same(NESTED[name], draw(0, 2, 6, 6, 2))
    text = str(jax.make_jaxpr(faster)(draw(0, 2, 6, 6, 2)))
    for word in ("remat2", "scan", "cond", "while"):  # these are kept
        assert (word in text) == (word in str(jax.make_jaxpr(NESTED[name])(draw(0, 2, 6, 6, 2)))), word


def test_functions_with_a_derivative_of_their_own_keep_it() -> None:
    @jax.custom_vjp
    def straight(x: jax.Array) -> jax.Array:
        return conv(x)

    straight.defvjp(lambda x: (conv(x), None), lambda _, gradient: (7 * gradient,))
    shrunk = jax.custom_jvp(conv)
    shrunk.defjvp(lambda primals, tangents: (conv(*primals), 3 * tangents[0]))
    for rule, factor in ((straight, 7), (shrunk, 3)):
        check_untouched(rule, x := draw(0, 2, 6, 6, 2))
        function = lambda x, rule=rule: rule(conv(x)).sum()
        found, expected = (jax.grad(f)(x) for f in (rap.fast_on_cpu(function), lambda x, by=factor: by * conv(x).sum()))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


UNTOUCHED: dict[str, Function] = {
    "groups": lambda x: conv(x, KERNEL[:, :, :1], feature_group_count=2),
    "dilated kernel": lambda x: conv(x, rhs_dilation=(2, 2)),
    "transposed": lambda x: conv(x, lhs_dilation=(2, 2), padding=((1, 1), (1, 1))),
    "unequal strides": lambda x: conv(x, window_strides=(1, 2)),
    "oblong kernel": lambda x: conv(x, KERNEL[:1]),
    "bfloat16": lambda x: conv(x.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16)),
    "float32 sums of bfloat16": lambda x: conv(
        x.astype(jnp.bfloat16), KERNEL.astype(jnp.bfloat16), preferred_element_type=jnp.float32
    ),
    "one axis": lambda x: lax.conv_general_dilated(x[0].transpose(0, 2, 1), KERNEL[0].transpose(2, 1, 0), (1,), "SAME"),
    "no output": lambda x: conv(x[:, :2, :2], padding="VALID"),
    "large window": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 5, 5, 1), (1, 1, 1, 1), "VALID"),
    "dilated window": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 2, 2, 1)
    ),
    "minimum": lambda x: lax.reduce_window(x, jnp.inf, lax.min, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "whole numbers": lambda x: lax.reduce_window(x.astype(int), 0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "fast already": lambda x: cpu_conv(x, jnp.asarray(KERNEL), 1, 1),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_has_no_form_stays(name: str) -> None:
    check_untouched(UNTOUCHED[name], draw(0, 2, 6, 6, 2))


@pytest.mark.parametrize("name", ["lenet_mnist", "lenet_mnist_bn", "lenet_cifar", "resnet18"])
def test_networks_of_this_package_have_their_forms_already(name: Any) -> None:
    shape = (28, 28, 1) if "mnist" in name else (32, 32, 3)
    model = create_model(ModelConfig(name, 1), input_shape=shape, num_classes=10, implementation="cpu")
    weights = jax.eval_shape(model.init, jax.random.key(0))
    gradient = lambda network: jax.grad(lambda weights, x: network(weights, x).sum(), 1)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    found, expected = (
        jax.make_jaxpr(gradient(f))(weights, images) for f in (rap.fast_on_cpu(model.logits), model.logits)
    )
    assert str(found) == str(expected)


def test_a_function_that_places_itself_stays() -> None:
    spread = NamedSharding(Mesh(np.asarray(jax.devices()[:2]), "data"), PartitionSpec("data"))
    check_untouched(lambda x: conv(lax.with_sharding_constraint(x, spread)), draw(0, 2, 6, 6, 2))


def test_arguments_and_results_may_be_trees() -> None:
    def network(tree: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return {"noisy": conv(tree["x"]) + jax.random.normal(key, tree["x"].shape), "clean": tree["x"]}

    arguments = {"x": draw(0, 2, 6, 6, 2)}, jax.random.key(1)
    found, expected = rap.fast_on_cpu(network)(*arguments), network(*arguments)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


def test_forward_mode_says_that_it_cannot() -> None:
    x = draw(0, 2, 6, 6, 2)
    with pytest.raises(TypeError, match="forward-mode autodiff.*custom_vjp"):
        jax.jvp(rap.fast_on_cpu(conv), (x,), (x,))
    one = lambda x: linen.max_pool(conv(x, KERNEL[:1, :1]), (2, 2), (2, 2))  # these have both modes
    found, expected = (jax.jvp(f, (x,), (x,)) for f in (rap.fast_on_cpu(one), one))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ValueError, match="function is 3; expected a function of arrays"):
        rap.fast_on_cpu(3)  # type: ignore[arg-type]
