"""The paper's networks: how many parameters, what they are called, what they compute, and on which images."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy_networks import NumpyNetwork, random_weights
from tiers import large_later

from rap_jax.config import ModelConfig
from rap_jax.models import Implementation, Model, create, create_model, from_linen, num_params
from rap_jax.models.layers.linear import ConvNorm, Dense
from rap_jax.models.network import Network

IMAGE_SHAPES = {"lenet_mnist": (28, 28, 1), "lenet_mnist_bn": (28, 28, 1)}
COUNTS = {
    "lenet_mnist": (13_514, 52_506, 206_954, 821_706, 3_274_634),
    "lenet_cifar": (62_006, 244_962, 973_754, 3_882_858, 15_507_146),
    "resnet18": (44_622, 176_402, 701_466, 2_797_610, 11_173_962),
    "vgg16": (58_686, 232_274, 924_186, 3_686_954, 14_728_266),
}
NORMED = {"kernel", "scale", "shift"}
WITH_BATCH_NORM = ("lenet_mnist_bn", "vgg16", "resnet18", "wide_resnet28")


def network(name: str, width: int = 1, implementation: Implementation = "xla", **changes: Any) -> Model:
    shape: Any = changes.get("input_shape", IMAGE_SHAPES.get(name, (32, 32, 3)))
    return create_model(
        ModelConfig(name, width, changes.get("initializer", "default")),
        input_shape=shape,
        num_classes=10,
        implementation=implementation,
    )


def shapes(model: Model) -> tuple[Any, Any]:
    return jax.eval_shape(model.init, jax.random.key(0))


def weights_for(model: Model, seed: int = 0) -> tuple[Any, Any]:
    params, batch_stats = shapes(model)
    return random_weights(params, seed), random_weights(batch_stats, seed + 1)


@functools.cache
def jitted(model: Model) -> Any:
    return jax.jit(model.apply, static_argnames="train")


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_the_papers_at_every_width(name: str) -> None:
    for width, count in zip((1, 2, 4, 8, 16), COUNTS[name], strict=True):
        assert num_params(shapes(network(name, width))[0]) == count


def test_a_folded_lenet_has_the_parameters_of_the_papers_at_every_width() -> None:
    for width, count in zip((1, 2, 4, 8, 16), COUNTS["lenet_mnist"], strict=True):
        folded, plain = network("lenet_mnist_bn", width).replace(folded=True), network("lenet_mnist", width)
        assert num_params(shapes(folded)[0]) == count
        chex.assert_trees_all_equal(shapes(folded), shapes(plain))
    assert num_params(shapes(network("lenet_mnist_bn"))[0]) == 13_584


def test_wrn_28_10_has_its_36_million_parameters() -> None:
    assert num_params(shapes(network("wide_resnet28", 10))[0]) == 36_479_194


@pytest.mark.parametrize("name", create.NETWORKS)
def test_what_lies_beside_a_kernel_belongs_to_its_outputs(name: str) -> None:
    params, batch_stats = shapes(network(name))
    assert create._NETWORKS[name].OUTPUT_LAYER in params

    def check(layer: dict[str, Any], stats: dict[str, Any]) -> None:
        below = {key: leaf for key, leaf in layer.items() if isinstance(leaf, dict)}
        for key in below:
            check(below[key], stats.get(key, {}))
        assert not below or below == layer
        assert below or set(layer) in ({"kernel"}, {"kernel", "bias"}, {"scale", "shift"}, NORMED, NORMED | {"bias"})
        assert below or set(stats) == ({"mean", "var"} if "scale" in layer else set())
        if "kernel" in layer:
            vectors = [leaf for key, leaf in (*layer.items(), *stats.items()) if key != "kernel"]
            assert {leaf.shape for leaf in vectors} <= {layer["kernel"].shape[-1:]}

    check(params, batch_stats)
    assert bool(batch_stats) == (name in WITH_BATCH_NORM)


def test_layers_of_the_residual_networks_are_nested_and_named() -> None:
    params, _ = shapes(network("resnet18"))
    blocks = [f"group{group}_block{block}" for group in (1, 2, 3, 4) for block in (0, 1)]
    assert set(params) == {"conv1", *blocks, "fc"}
    shape_of = functools.partial(jax.tree.map, lambda leaf: leaf.shape)
    vectors = {"scale": (8,), "shift": (8,)}
    assert shape_of(params["group2_block0"]) == {
        "conv1": {"kernel": (3, 3, 4, 8), **vectors},
        "conv2": {"kernel": (3, 3, 8, 8), **vectors},
        "shortcut": {"kernel": (1, 1, 4, 8), **vectors},
    }
    params, _ = shapes(network("wide_resnet28", 2))
    assert shape_of(params["group1_block0"]) == {
        "norm1": {"scale": (16,), "shift": (16,)},
        "conv1": {"kernel": (3, 3, 16, 32), "scale": (32,), "shift": (32,)},
        "conv2": {"kernel": (3, 3, 32, 32)},
        "shortcut": {"kernel": (1, 1, 16, 32)},
    }


@pytest.mark.parametrize(
    ("name", "width", "implementation"),
    large_later(
        [
            ("resnet18", 2, "cpu"),
            ("resnet18", 1, "xla"),
            ("vgg16", 2, "cpu"),
            ("wide_resnet28", 2, "cpu"),
            ("lenet_cifar", 1, "cpu"),
            ("lenet_mnist_bn", 1, "cpu"),
            ("lenet_mnist_bn", 2, "xla"),
        ]
    ),
)
def test_networks_are_those_of_numpy(name: str, width: int, implementation: Implementation) -> None:
    model = network(name, width, implementation)
    params, batch_stats = weights_for(model)
    images = np.random.default_rng(9).uniform(size=(2, 3, *model.input_shape)).astype(np.float32)
    reference = NumpyNetwork(params, batch_stats)

    logits, unchanged = jitted(model)(params, batch_stats, images[0], train=False)
    np.testing.assert_allclose(logits, reference(name, images[0], train=False), atol=1e-4)
    chex.assert_trees_all_equal(unchanged, batch_stats)

    for batch in images:
        logits, batch_stats = jitted(model)(params, batch_stats, batch, train=True)
        np.testing.assert_allclose(logits, reference(name, batch, train=True), atol=1e-4)
    chex.assert_trees_all_close(batch_stats, reference.batch_stats, atol=1e-4)


@pytest.mark.parametrize("name", create.NETWORKS)
def test_the_initializer_sets_every_convolution_and_nothing_else(name: str) -> None:
    drawn = []

    def kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
        drawn.append(shape)
        return jax.random.normal(key, shape, dtype)

    module = create._NETWORKS[name](width=1, num_classes=10, kernel_init=kernel_init)
    model = from_linen(module, input_shape=(32, 32, 3), num_classes=10, output_layer=module.OUTPUT_LAYER)
    kernels = [leaf.shape for leaf in jax.tree.leaves(shapes(model)[0]) if len(leaf.shape) == 4]
    assert sorted(drawn) == sorted(kernels)


@pytest.mark.parametrize("name", large_later(create.NETWORKS))
def test_the_implementation_reaches_every_convolution(name: str) -> None:
    def image_gradient(implementation: Implementation) -> str:
        model = network(name, implementation=implementation)
        gradient = jax.grad(lambda images, *weights: model.apply(*weights, images, train=False)[0].sum())
        images = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.float32)
        return str(jax.make_jaxpr(gradient)(images, *shapes(model)))

    cpu, xla = image_gradient("cpu"), image_gradient("xla")
    num_convs = sum(len(leaf.shape) == 4 for leaf in jax.tree.leaves(shapes(network(name))[0]))
    if name.startswith("lenet_mnist"):
        assert "conv_general_dilated" not in cpu
    else:
        # One on the way up and one on the way down; more where the images' channels are filled up.
        assert cpu.count("optimization_barrier") >= 2 * num_convs
    assert xla.count("conv_general_dilated[") == 2 * num_convs
    assert "optimization_barrier" not in xla


def test_default_is_the_networks_own_initialisation() -> None:
    own = {name: network.DEFAULT_INITIALIZER for name, network in create._NETWORKS.items()}
    assert own == {
        "lenet_mnist": "xavier_uniform",
        "lenet_mnist_bn": "xavier_uniform",
        "lenet_cifar": "pytorch",
        "vgg16": "pytorch",
        "resnet18": "pytorch",
        "wide_resnet28": "kaiming_normal",
    }


@pytest.mark.parametrize(
    ("name", "least"),
    [("vgg16", 32), ("lenet_cifar", 16), ("lenet_mnist", 4), ("lenet_mnist_bn", 4), ("resnet18", 1)],
)
def test_images_may_be_as_small_as_the_poolings_allow(name: str, least: int) -> None:
    model = network(name, input_shape=(least, least + 1, 3))
    logits, _ = jax.eval_shape(
        functools.partial(model.apply, train=True), *shapes(model), jax.ShapeDtypeStruct((2, least, least + 1, 3), "f")
    )
    assert logits.shape == (2, 10)
    if least > 1:
        message = rf"input_shape is .*expected images of {least}x{least} pixels or more for {name}"
        with pytest.raises(ValueError, match=message):
            network(name, input_shape=(least + 1, least - 1, 3))


class Toy(Network):
    """What a user writes to add a network."""

    OUTPUT_LAYER: ClassVar[str] = "head"
    DEFAULT_INITIALIZER: ClassVar[str] = "uniform"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(ConvNorm, kernel_size=3, padding=1, kernel_init=self.kernel_init)
        hidden = nn.relu(conv(2 * self.width, stride=2, name="conv1")(images, train))
        hidden = nn.relu(conv(4 * self.width, use_bias=True, name="conv2")(hidden, train))
        return Dense(self.num_classes, name="head")(hidden.mean((1, 2)))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Model]:
    monkeypatch.setitem(create._NETWORKS, "toy", Toy)
    return functools.partial(network, "toy", input_shape=(8, 8, 1))


def test_a_network_is_added_by_one_entry(toy: Callable[..., Model]) -> None:
    model = toy(width=2)
    params, batch_stats = jax.jit(model.init)(jax.random.key(0))
    assert model.output_layer == "head"
    assert params["conv2"]["kernel"].shape == (3, 3, 4, 8)
    assert model.apply(params, batch_stats, jnp.ones((2, 8, 8, 1)), train=False)[0].shape == (2, 10)
    # Its default, U(0, 1), is the only initialisation without negative weights.
    kernel = params["conv2"]["kernel"]
    assert kernel.min() >= 0 and kernel.max() > 0.9


@pytest.mark.skipif(jax.device_count() < 8, reason="conftest.py gives the tests 8 CPU devices")
def test_a_batch_over_eight_devices_is_normalised_as_one_batch(toy: Callable[..., Model]) -> None:
    model = toy(width=2)
    params, batch_stats = weights_for(model)
    # The devices' shares differ in brightness, so statistics of a share are far from those of the batch.
    images = np.random.default_rng(1).uniform(size=(16, 8, 8, 1)) * np.linspace(0, 1, 16).reshape(16, 1, 1, 1)
    images = images.astype(np.float32)

    @jax.jit
    def step(params: Any, batch_stats: Any, images: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, moved = model.apply(params, batch_stats, images, train=True)
            return jnp.square(logits).mean(), moved

        return jax.value_and_grad(loss, has_aux=True)(params)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = step(
        *jax.device_put((params, batch_stats), NamedSharding(mesh, P())),
        jax.device_put(images, NamedSharding(mesh, P("data"))),
    )
    chex.assert_trees_all_close(sharded, step(params, batch_stats, images), rtol=1e-4, atol=1e-5)
