"""Every network, in every format: the same logits as in JAX, by readers that know nothing of this package."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from exported_run import NETWORKS, images_for, network
from jax import export
from tiers import large_later

from rap_jax.export.onnx.file import onnx_model, open_reference, open_session
from rap_jax.export.onnx.graph import Graph
from rap_jax.export.onnx.rules import image_input, lower
from rap_jax.export.safetensors import safetensors_bytes
from rap_jax.export.stablehlo import stablehlo_bytes
from rap_jax.models.layers.pool import max_pool


def logits_of(name: str) -> Any:
    model, weights = network(name)
    return lambda images: model.apply(*weights, images, False)[0]


def expected(name: str) -> tuple[np.ndarray, np.ndarray]:
    images = images_for(name)
    logits = np.asarray(jax.jit(logits_of(name))(images))
    assert logits.std(0).min() > 0.01, "the logits hardly depend on the images: nothing would be tested"
    return images, logits


def to_onnx(logits_fn: Any, shape: tuple[int, int, int], num_classes: int = 10) -> Any:
    return onnx_model(logits_fn, input_shape=shape, num_classes=num_classes, metadata={"a": 1})


@pytest.mark.parametrize("name", large_later(NETWORKS))
def test_stablehlo(name: str) -> None:
    images, logits = expected(name)
    exported = export.deserialize(bytearray(stablehlo_bytes(logits_of(name), NETWORKS[name])))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_allclose(jax.jit(exported.call)(images), logits, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(jax.jit(exported.call)(images[:2]), logits[:2], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", large_later(["lenet_mnist", "lenet_cifar", "resnet18"]))
def test_stablehlo_has_the_gradient(name: str) -> None:
    images = jnp.asarray(images_for(name, 2))
    exported = export.deserialize(bytearray(stablehlo_bytes(logits_of(name), NETWORKS[name])))
    gradient = lambda f: jax.jit(jax.grad(lambda x: f(x)[:, 1].sum()))(images)
    first, second = gradient(exported.call), gradient(logits_of(name))
    assert float(jnp.abs(second).max()) > 1e-3
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", large_later(NETWORKS))
def test_onnx(name: str, tmp_path: Path) -> None:
    images, logits = expected(name)
    model = to_onnx(logits_of(name), NETWORKS[name])
    session = open_session(model.SerializeToString())
    for count in (5, 1):  # any batch
        np.testing.assert_allclose(session.logits_fn(images[:count]), logits[:count], rtol=1e-5, atol=1e-4)
    assert (session.input_shape, session.num_classes, session.metadata) == (NETWORKS[name], 10, {"a": 1})
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Transpose") == 1 and not {"Div", "Sqrt", "Where", "Reshape", "Gather"} & set(kinds)
    assert all(len(node.input) == 3 for node in model.graph.node if node.op_type == "Gemm")


@pytest.mark.parametrize("name", NETWORKS)
def test_safetensors_in_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load
    from torch_networks import torch_network

    images, logits = expected(name)
    weights = network(name)[1]
    twin = torch_network(name, 1, NETWORKS[name])
    twin.load_state_dict(load(safetensors_bytes(name, weights, {"a": 1})))  # strict: every name, every shape
    with torch.no_grad():
        found = twin(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-4)


def test_a_network_of_the_users_own_in_onnx() -> None:
    """Other sums, products and functions than ours have, in any order of layers."""
    rng = np.random.default_rng(0)
    kernel, dense, mix = (rng.normal(size=s).astype(np.float32) for s in ((3, 2, 2, 4), (9 * 10 * 4, 6), (6, 3)))

    def logits_fn(images: jax.Array) -> jax.Array:
        pooled = jax.lax.conv_general_dilated(
            images, kernel, (2, 1), ((1, 2), (0, 1)), rhs_dilation=(1, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jnp.tanh(pooled) * 2 - jax.nn.sigmoid(pooled) / 3
        flat = jnp.abs(hidden.reshape(images.shape[0], -1)) + jnp.arange(360.0).reshape(1, -1) / 100
        return jnp.exp(-jnp.minimum(flat @ dense, 3.0)) @ mix

    images = rng.random((3, 17, 11, 2), np.float32)
    session = open_session(to_onnx(logits_fn, (17, 11, 2), 3).SerializeToString())
    np.testing.assert_allclose(session.logits_fn(images), logits_fn(images), rtol=1e-4, atol=1e-4)


def test_values_leave_the_graph_in_their_own_order() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(3 * 4 * 2, 3)).astype(np.float32)
    for function in (
        lambda x: x.reshape(x.shape[0], -1)[:] * 2,
        lambda x: x.reshape(x.shape[0], 12, 2).reshape(x.shape[0], -1) @ dense,
        lambda x: (x.reshape(x.shape[0], -1) + x.reshape(x.shape[0], 12, 2).reshape(x.shape[0], -1)) @ dense,
        lambda x: x.reshape(x.shape[0], 4, 3, 2).reshape(x.shape[0], -1) @ dense,
        lambda x: x.sum((1, 2)) / 5,  # no mean
        lambda x: max_pool(x).mean((1, 2)) + x.mean((1, 2)) * jnp.ones((1, 2)),
    ):
        images = rng.random((5, 3, 4, 2), np.float32)
        found = np.asarray(function(images))
        session = open_session(to_onnx(function, (3, 4, 2), found.shape[1]).SerializeToString())
        np.testing.assert_allclose(session.logits_fn(images), found, atol=1e-5)


def named(name: str, function: Any) -> Any:
    """A user's own function that is called like one of ours."""
    function.__name__ = name
    return jax.jit(function)


def windows(size: int, stride: int) -> Any:
    shape, strides = (1, size, size, 1), (1, stride, stride, 1)
    return lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, shape, strides, "VALID")


@pytest.mark.parametrize(
    "function",
    [
        named("max_pool", windows(3, 3)),
        named("max_pool", windows(2, 1)),
        named("max_pool", lambda x: jnp.maximum(x, 0.5)),
        named("relu", lambda x: jnp.maximum(x, 0.5)),
        named("_window_max", lambda x: x * 2),
        named("max_pool", max_pool),
        jax.checkpoint(lambda x: x * 2),
    ],
)
def test_a_name_does_not_say_what_a_function_computes(function: Any) -> None:
    images = np.random.default_rng(0).random((5, 7, 6, 2), np.float32)
    logits_fn = lambda x: function(x).mean((1, 2))
    session = open_session(to_onnx(logits_fn, (7, 6, 2), 2).SerializeToString())
    np.testing.assert_allclose(session.logits_fn(images), logits_fn(images), atol=1e-5)


def test_without_onnxruntime_the_evaluator_of_onnx_compares(tmp_path: Path) -> None:
    images, logits = expected("lenet_mnist")
    onnx.save(to_onnx(logits_of("lenet_mnist"), NETWORKS["lenet_mnist"]), tmp_path / "network.onnx")
    network = open_reference(tmp_path / "network.onnx")
    assert (network.input_shape, network.num_classes) == (NETWORKS["lenet_mnist"], 10)
    np.testing.assert_allclose(network.logits_fn(images), logits, rtol=1e-4, atol=1e-4)


def test_a_bias_that_is_read_twice_stays() -> None:
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(1, 3)).astype(np.float32)

    def logits_fn(images: jax.Array) -> jax.Array:
        scores = images.reshape(images.shape[0], -1) @ kernel
        return (scores + bias) * scores

    images = rng.random((5, 2, 2, 2), np.float32)
    session = open_session(to_onnx(logits_fn, (2, 2, 2), 3).SerializeToString())
    np.testing.assert_allclose(session.logits_fn(images), logits_fn(images), atol=1e-5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: jnp.sort(x.mean((1, 2))),
            r"sort\(float32\[batch,2\]\), which has no ONNX form here; known are abs, add",
        ),
        (lambda x: x.sum((1, 3)), "reduce_sum.*expected a sum over height and width"),
        (lambda x: x.reshape(x.shape[0], -1) @ x.reshape(x.shape[0], -1).T, "has no ONNX form"),
        (lambda x: x.reshape(x.shape[0], -1).astype(jnp.float16), "expected float32 throughout"),
        (lambda x: jnp.ones((2, 10)), "do not depend on the images"),
        (lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME"), "padding"),
        # More than one call of what is inside, and a constant that has a row for each image.
        (lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y * 2, x).mean((1, 2)), "computes scan"),
        (
            lambda x: jnp.ones((x.shape[0], 2)).sum(0).reshape(1, 2) + x.mean((1, 2)),
            "reduce_sum.*not repeated for each image",
        ),
    ],
)
def test_what_has_no_onnx_form(function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_onnx(function, (4, 4, 2))


def test_constants_are_computed_when_the_file_is_written() -> None:
    graph = Graph()
    closed = jax.make_jaxpr(lambda x: x * jnp.sqrt(jnp.asarray([4.0])).reshape(1, 1, 1, 1))(jnp.ones((1, 2, 2, 1)))
    lower(graph, closed, [image_input(graph, "images")])
    assert [node.op_type for node in graph.nodes] == ["Transpose", "Mul"]
    (constant,) = graph.constants.values()
    assert constant.tolist() == [[[[2.0]]]]
