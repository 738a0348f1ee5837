"""Bounds against published small cases, brute force and closed forms; certificates against attacks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax.attacks import (
    ThreatModel,
    apgd,
    apgd_targeted,
    fab,
    fab_targeted,
    fgsm,
    momentum_pgd,
    pgd,
    square,
)
from rap_jax.attacks.losses import margin
from rap_jax.evaluation.certificates import METHODS, Method, certify, check_unbroken, graph_of, margin_bounds
from rap_jax.evaluation.certificates.bounds import bound_nodes, lowest

Function = Callable[[jax.Array], jax.Array]
WHOLE_BOX = ThreatModel("linf", 0.5)  # around 0.5: all of [0, 1]
LINF, L2 = ThreatModel("linf", 0.1), ThreatModel("l2", 0.3)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def bounds_of(function: Function, num_inputs: int, method: Method) -> tuple[float, float]:
    """Of a function of all [0, 1]^n with one output."""
    images = jnp.full((1, num_inputs), 0.5)
    graph = graph_of(function, (num_inputs,))
    found = bound_nodes(graph, images, WHOLE_BOX, method)
    output = len(graph.nodes) - 1
    if method == "interval":
        return tuple(float(bound[0, 0]) for bound in found.nodes[output])  # type: ignore[return-value]
    below, above = (
        float(lowest(graph, {output: jnp.full((1, 1, 1), sign)}, found, images, WHOLE_BOX).values[0])
        for sign in (1.0, -1.0)
    )
    return below, -above


@pytest.mark.parametrize(("method", "expected"), [("interval", (-6, 4)), ("crown_ibp", (-3, 3)), ("crown", (-3, 3))])
def test_the_toy_network_of_auto_lirpa(method: Method, expected: tuple[float, float]) -> None:
    """x in [-1, 2] x [-2, 1]; the numbers of its example `toy.py`."""
    first, second = jnp.array([[1.0, -1.0], [2.0, -1.0]]), jnp.array([[1.0, -1.0]])
    function = lambda x: jax.nn.relu((3 * x + jnp.array([[-1.0, -2.0]])) @ first.T) @ second.T
    np.testing.assert_allclose(bounds_of(function, 2, method), expected, rtol=1e-6)


def test_the_toy_network_of_deeppoly() -> None:
    """Singh et al., POPL 2019, figure 3: x in [-1, 1]^2, and the bounds that they prove, 1 and 4."""
    mix = jnp.array([[1.0, 1.0], [1.0, -1.0]])

    def function(x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(jax.nn.relu((2 * x - 1) @ mix) @ mix)
        return hidden @ jnp.array([[1.0], [0.0]]) + 1

    np.testing.assert_allclose(bounds_of(function, 2, "crown"), (1, 4), rtol=1e-6)


def test_the_small_cases_of_jax_verify() -> None:
    """`ibp_test.py`, `crownibp_test.py` and `backward_crown_test.py`: images z - 1 to z + 1, a bias of 2, weights 1."""
    summed = lambda x: (2 * x + jnp.array([[0.0, 1.0, 2.0]])).sum(-1, keepdims=True) + 2
    kernel, corner = jnp.ones((2, 2, 1, 1)), jnp.arange(4.0).reshape(1, 2, 2, 1)
    convolved = lambda x: jax.lax.conv_general_dilated(
        2 * x.reshape(-1, 2, 2, 1) + corner, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).reshape(-1, 1) + 2  # fmt: skip
    for method in METHODS:
        np.testing.assert_allclose(bounds_of(summed, 3, method), (5, 11), rtol=1e-6)
        np.testing.assert_allclose(bounds_of(convolved, 4, method), (8, 16), rtol=1e-6)
        np.testing.assert_allclose(bounds_of(lambda x: jax.nn.relu(2 * x - 3), 1, method), (0, 0), atol=1e-6)
        np.testing.assert_allclose(bounds_of(lambda x: jax.nn.relu(2 * x + 2), 1, method), (2, 4), rtol=1e-6)


def least_over_a_square(
    function: Function, kernel: np.ndarray, bias: np.ndarray, middle: np.ndarray, size: float
) -> float:
    """Of a function that is affine between the lines x kernel + bias = 0: it lies where two of them or edges meet."""
    edges = [(axis, -(middle[number] + sign * size)) for number, axis in enumerate(np.eye(2)) for sign in (-1, 1)]
    lines = [*zip(kernel.T, bias, strict=True), *edges]
    corners = []
    for first, (one, offset) in enumerate(lines):
        for other, shift in lines[:first]:
            if abs(np.linalg.det([one, other])) > 1e-9:
                corners.append(np.linalg.solve([one, other], [-offset, -shift]))
    inside = [x for x in corners if np.abs(x - middle).max() <= size + 1e-9]
    return float(np.min(function(jnp.asarray(inside, jnp.float32))))


def test_brute_force_on_networks_of_two_inputs() -> None:
    """No margin that is proved exceeds the least one, which is found where the pieces of the network meet."""
    threat_model, middle, ratios = ThreatModel("linf", 0.2), np.array([0.4, 0.6]), []
    bounds = jax.jit(
        lambda weights, image, method: margin_bounds(
            lambda x: jax.nn.relu(x @ weights[0] + weights[1][None]) @ weights[2],
            image,
            jnp.array([0]),
            threat_model=threat_model,
            method=method,
        )[0, 1],
        static_argnums=2,
    )
    for seed in range(40):
        weights = normal(seed, 2, 5), 0.5 * normal(seed + 100, 5), normal(seed + 200, 5, 2)
        margin = lambda x, w=weights: (jax.nn.relu(x @ w[0] + w[1][None]) @ w[2]) @ jnp.array([1.0, -1.0])
        least = least_over_a_square(margin, *map(np.asarray, weights[:2]), middle, 0.2)
        found = [float(bounds(weights, jnp.asarray(middle[None], jnp.float32), method)) for method in METHODS]
        assert max(found) <= least + 1e-4, seed
        ratios.append(least - found[-1] < 0.05 * (1 + abs(least)))
    assert np.mean(ratios) > 0.4  # and CROWN often finds it


def convolutional(x: jax.Array) -> jax.Array:
    """Images [N, 4, 4, 1]: convolution, ReLU, max pooling with overlap and padding, mean pooling, a sum, BatchNorm."""
    convolve = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(convolve(x, normal(0, 3, 3, 1, 2)) + normal(1, 2)[None, None, None] * 0.1)
    x = (x - 0.1) * jax.lax.rsqrt(jnp.array([0.5, 2.0]))[None, None, None] + 0.2
    x = x + jax.nn.relu(convolve(x, 0.3 * normal(2, 3, 3, 2, 2)))
    pooled = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
    mean = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    flat = jnp.concatenate([pooled.reshape(len(x), -1), mean.reshape(len(x), -1)], -1)
    return flat @ normal(3, flat.shape[-1], 3)


def dense(bend: Function) -> Function:
    return lambda x: bend(x.reshape(len(x), -1) @ normal(4, 16, 8)) @ normal(5, 8, 3)


FUNCTIONS: dict[str, Function] = {
    "convolutional": convolutional,
    "relu": dense(jax.nn.relu),
    "maximum": dense(lambda x: jnp.maximum(x, 0.3 * x)),
    "where": dense(lambda x: jnp.where(x > 0, x, 0)),
    "where, the larger": dense(lambda x: (lambda x, y: jnp.where(x < y, y, x))(x, x[:, ::-1])),
    "clip": dense(lambda x: jnp.clip(x, -1, 1)),
    "minimum of two": dense(lambda x: jnp.minimum(x, x[:, ::-1])),
    "absolute": dense(jnp.abs),
    "largest of three": dense(lambda x: x[:, :6].reshape(-1, 3, 2).max(1).repeat(4, -1)),
    "smallest": dense(lambda x: x * 0.5 + jnp.broadcast_to(x.min(-1, keepdims=True), x.shape)),
    "under jit": jax.jit(dense(jax.checkpoint(jax.nn.relu))),
    "leaky": dense(lambda x: jax.nn.relu(x) - 0.1 * jax.nn.relu(-x)),
    "leaky of jax": dense(jax.nn.leaky_relu),
    "slopes below": dense(lambda x: jnp.where(x < 0, normal(12, 8)[None] * x, x)),
    "relu6": dense(jax.nn.relu6),
    "masked": dense(
        lambda x: jnp.repeat(jnp.where(jnp.arange(8)[None] < 4, x - 9, -1e9).max(-1, keepdims=True), 8, -1)
    ),
    # Squares, in which the axis of the batch is not the first one.
    "weights first": lambda x: (normal(13, 3, 3) @ jax.nn.relu(normal(14, 3, 16) @ x.reshape(len(x), -1).T - 0.5)).T,
    "mapped": lambda x: (
        jax.vmap(lambda x: jax.nn.relu(normal(14, 3, 16) @ x - 0.5))(x.reshape(len(x), -1)) @ normal(13, 3, 3)
    ),
    "filled": dense(lambda x: x - x.at[:, jnp.array([9] * 8)].get(mode="fill", fill_value=-5.0)),
    "padded": dense(lambda x: jnp.pad(x, ((0, 0), (1, 1)), constant_values=-3.0)[:, 2:] - x),
    "written": dense(lambda x: jax.nn.relu(x.at[:, 0].set(0.5).at[:, 1].add(2.0))),
    "identities": dense(lambda x: jax.lax.optimization_barrier(jax.nn.relu(jax.lax.stop_gradient(x)))),
    "unused": dense(lambda x: (jnp.exp(x), jax.nn.relu(x))[1]),
}
IMAGES = jax.random.uniform(jax.random.key(6), (3, 4, 4, 1))


@pytest.mark.parametrize("threat_model", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bounds_contain_what_the_network_computes(name: str, threat_model: ThreatModel) -> None:
    """Of 10,000 images of the threat model: corners, and points of the ball."""
    function, labels = FUNCTIONS[name], jnp.array([0, 1, 2])
    keys = jax.random.split(jax.random.key(7), 10_000)
    moved = jax.vmap(lambda key: threat_model.perturb(IMAGES, threat_model.random_start(key, IMAGES)))(keys[:5000])
    sign = lambda key: threat_model.perturb(IMAGES, jax.random.rademacher(key, IMAGES.shape, jnp.float32))
    images = jnp.concatenate([moved, jax.vmap(sign)(keys[5000:])])
    logits = jax.lax.map(function, images, batch_size=500)
    margins = logits[:, jnp.arange(3), labels][..., None] - logits
    for method in METHODS:
        found = margin_bounds(function, IMAGES, labels, threat_model=threat_model, method=method)
        assert found.shape == (3, 3) and np.all(np.isfinite(found))
        assert np.all(found <= margins.min(0) + 1e-4), method
        np.testing.assert_allclose(found[jnp.arange(3), labels], 0, atol=1e-5)


@pytest.mark.parametrize("threat_model", [LINF, L2], ids=["linf", "l2"])
def test_bounds_of_an_affine_network_are_exact(threat_model: ThreatModel) -> None:
    kernel = normal(8, 16, 3)
    images = 0.5 + 0.1 * normal(9, 2, 4, 4, 1).clip(-1, 1)  # no ball leaves [0, 1]
    logits_fn = lambda x: x.reshape(len(x), -1) @ kernel + 1
    found = margin_bounds(logits_fn, images, jnp.array([0, 2]), threat_model=threat_model)
    for number, label in enumerate((0, 2)):
        differences = kernel[:, label, None] - kernel
        order = {"linf": 1, "l2": 2}[threat_model.norm]
        lost = threat_model.epsilon * np.linalg.norm(differences, order, axis=0)
        np.testing.assert_allclose(found[number], images[number].reshape(-1) @ differences - lost, atol=1e-4)


def test_a_function_of_one_input_by_hand() -> None:
    """relu(y) - y over [-1, 2] is in [0, 1]; intervals do not know that both are of one y."""
    function = lambda x: jax.nn.relu(3 * x - 1) - (3 * x - 1)
    np.testing.assert_allclose(bounds_of(function, 1, "interval"), (-2, 3), rtol=1e-6)
    np.testing.assert_allclose(bounds_of(function, 1, "crown"), (0, 1), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_no_attack_breaks_what_is_certified(method: Method) -> None:
    function, threat_model = FUNCTIONS["relu"], ThreatModel("linf", 0.02)
    images = jax.random.uniform(jax.random.key(10), (64, 4, 4, 1))
    labels = function(images).argmax(-1)
    found = certify(function, images, labels, threat_model=threat_model, method=method, batch_size=24)
    result = pgd(
        function, images, labels, threat_model=threat_model, key=jax.random.key(11), step_size=0.01, num_steps=20
    )
    assert not np.any(found.certified & np.asarray(result.broken)) and not np.any(found.certified & found.broken)
    assert found.certified.any() and found.broken.any() and found.certified.shape == (64,)
    missed = np.asarray(function(found.adversarial).argmax(-1) != labels)
    np.testing.assert_array_equal(found.broken, missed)
    assert np.all(threat_model.contains(found.adversarial, images))
    np.testing.assert_array_equal(found.adversarial[~missed], np.asarray(images)[~missed])
    assert np.all(found.margin[found.certified] > 0)


def deep(x: jax.Array) -> jax.Array:
    """Two hidden layers and four classes."""
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ normal(20, 16, 12) - 0.3)
    return jax.nn.relu(hidden @ normal(21, 12, 10)) @ normal(22, 10, 4)


ATTACKS: dict[str, Any] = {
    "fgsm": fgsm,
    "pgd": functools.partial(pgd, step_size=0.005, num_steps=20, num_restarts=2),
    "pgd on the margin": functools.partial(pgd, step_size=0.005, num_steps=20, loss=margin),
    "momentum_pgd": functools.partial(momentum_pgd, step_size=0.005, num_steps=20),
    "apgd": functools.partial(apgd, num_steps=20),
    "apgd_targeted": functools.partial(apgd_targeted, num_targets=2, num_steps=20),
    "fab": functools.partial(fab, num_steps=20),
    "fab_targeted": functools.partial(fab_targeted, num_targets=2, num_steps=20),
    "square": functools.partial(square, num_steps=200),
}


@pytest.mark.e2e
@pytest.mark.parametrize("threat_model", [ThreatModel("linf", 0.04), ThreatModel("l2", 0.1)], ids=["linf", "l2"])
def test_what_is_certified_survives_every_attack(threat_model: ThreatModel) -> None:
    """And 100 random images of the threat model each."""
    images = jax.random.uniform(jax.random.key(10), (64, 4, 4, 1))
    labels = deep(images).argmax(-1)
    found = certify(deep, images, labels, threat_model=threat_model)
    assert 10 < found.certified.sum() < 64
    broken = np.zeros(64, bool)
    for number, attack in enumerate(ATTACKS.values()):
        run = lambda images, key, attack=attack: attack(deep, images, labels, threat_model=threat_model, key=key)
        broken |= np.asarray(jax.jit(run)(images, jax.random.key(number)).broken)
    assert broken.any() and not np.any(found.certified & broken)
    for key in jax.random.split(jax.random.key(20), 100):
        moved = threat_model.perturb(images, threat_model.random_start(jax.random.split(key, 64), images))
        assert np.all((deep(moved).argmax(-1) == labels)[found.certified])


def test_the_methods_take_turns_on_what_is_left() -> None:
    function, threat_model = deep, ThreatModel("linf", 0.02)
    images = jax.random.uniform(jax.random.key(10), (40, 4, 4, 1))
    labels = function(images).argmax(-1)
    given = {"threat_model": threat_model, "batch_size": 7}
    bound = functools.partial(margin_bounds, function, threat_model=threat_model)
    alone = [jax.jit(functools.partial(bound, method=method))(images, labels) for method in METHODS]
    is_label = jax.nn.one_hot(labels, 4, dtype=bool)
    proved = [np.asarray(jnp.where(is_label, jnp.inf, margins).min(-1) > 1e-3) for margins in alone]
    found = certify(function, images, labels, **given)
    np.testing.assert_array_equal(found.certified, np.any(proved, 0))
    for number in range(3):
        np.testing.assert_array_equal(
            found.certified & (found.tried == number + 1), np.any(proved[: number + 1], 0) & ~np.any(proved[:number], 0)
        )
    assert set(found.tried) == {1, 2, 3} and np.all(found.margin[found.certified] > 0)
    quick = certify(function, images, labels, method="crown_ibp", **given)
    before = [np.array(field) for field in quick]
    looked: list[int] = []
    again = certify(function, images, labels, known=quick, on_batch=lambda found: looked.append(1), **given)
    for one, other in zip(again, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(looked) == -(-int((~quick.certified & ~quick.broken).sum()) // 7)
    for one, other in zip(quick, before, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"known is of images \[40, 4, 4, 1\], the images are \[3, 4, 4, 1\]"):
        certify(function, IMAGES, np.array([0, 1, 2]), threat_model=threat_model, known=quick)


def test_an_image_that_is_certified_and_broken_is_refused() -> None:
    certified, broken = np.array([True, True, False]), np.array([False, True, True])
    check_unbroken(certified, ~certified, "PGD")
    with pytest.raises(ValueError, match="1 images are certified, and PGD broke them .the first is number 1"):
        check_unbroken(certified, broken, "PGD")


def test_methods_are_ordered() -> None:
    labels = jnp.array([0, 1, 2])
    interval, crown_ibp, crown = (
        margin_bounds(convolutional, IMAGES, labels, threat_model=LINF, method=method) for method in METHODS
    )
    assert np.all(crown_ibp >= interval - 1e-5) and np.all(crown >= crown_ibp - 1e-4)
    assert np.mean(crown - interval) > 0.5


def test_a_misclassified_image_is_broken() -> None:
    function = FUNCTIONS["relu"]
    wrong = (function(IMAGES).argmax(-1) + 1) % 3
    found = certify(function, IMAGES, wrong, threat_model=ThreatModel("linf", 0.0))
    assert found.broken.all() and not found.certified.any()
    right = certify(function, IMAGES, function(IMAGES).argmax(-1), threat_model=ThreatModel("linf", 0.0))
    assert right.certified.all() and not right.broken.any()


@pytest.mark.parametrize("method", ["interval", "crown_ibp"])
def test_a_loss_of_bounds_has_a_gradient(method: Method) -> None:
    """By finite differences in one weight."""

    def loss(scale: jax.Array) -> jax.Array:
        function = lambda x: scale * convolutional(x) + 0.1 * scale**2
        margins = margin_bounds(function, IMAGES, jnp.array([0, 1, 2]), threat_model=LINF, method=method)
        return jax.nn.logsumexp(-margins, -1).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.float32(1.0))
    step = 1e-2
    numeric = (loss(jnp.float32(1 + step)) - loss(jnp.float32(1 - step))) / (2 * step)
    assert np.isfinite(value) and float(gradient) == pytest.approx(float(numeric), rel=1e-2)


@pytest.mark.parametrize(
    ("function", "primitive"),
    [
        (lambda x: jnp.exp(x.reshape(len(x), -1)), "exp"),
        (lambda x: (x * x).reshape(len(x), -1), "mul"),
        (lambda x: 1 / (1 + x.reshape(len(x), -1)), "div"),
        (lambda x: jnp.where(x > 0.5, 2 * x, x).reshape(len(x), -1), "select_n"),
        (lambda x: jnp.round(x).reshape(len(x), -1), "round"),
        (lambda x: (x > 0.5).astype(jnp.float32).reshape(len(x), -1), "convert_element_type"),
        (lambda x: jnp.sort(x.reshape(len(x), -1)), "sort"),
        (lambda x: jax.lax.fori_loop(0, 3, lambda _, y: y / 2, x.reshape(len(x), -1)), "scan"),
        (lambda x: x.reshape(len(x), -1) / (1 + jnp.square(x).mean()), "square"),
    ],
)
def test_what_has_no_bounds_is_refused(function: Function, primitive: str) -> None:
    with pytest.raises(ValueError, match=f"has a {primitive} of what depends on the images, which has no bounds here"):
        graph_of(function, (4, 4, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "alpha"}, "method is 'alpha'; expected one of interval, crown_ibp, crown"),
        ({"labels": np.array([0, 1])}, r"labels are int64\[2\] for images \[3, 4, 4, 1\]; expected whole numbers"),
        ({"labels": np.array([0.0, 1.0, 2.0])}, r"labels are float64\[3\]"),
        ({"labels": np.array([0, 1, 3])}, "labels go from 0 to 3; expected 0 to 2"),
        ({"images": np.asarray(IMAGES) * 255}, r"images go from .* expected \[0, 1\], without NaN"),
        ({"images": np.asarray(IMAGES) * np.nan}, r"images go from nan to nan; expected \[0, 1\]"),
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more images"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    given = {"images": IMAGES, "labels": np.array([0, 1, 2]), "threat_model": LINF, "logits_fn": FUNCTIONS["relu"]}
    with pytest.raises(ValueError, match=message):
        certify(**(given | changes))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: x.astype(jnp.bfloat16).reshape(len(x), -1),
            "has a convert_element_type in bfloat16 of what depends",
        ),
        (lambda x: x, r"returns \[\(1, 4, 4, 1\)\] for one image; expected logits \[1, K\]"),
        (lambda x: (x.reshape(len(x), -1),) * 2, "for one image; expected logits"),
        (
            lambda x: jax.lax.reduce_window(
                x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), ((0, 0), (2, 2), (2, 2), (0, 0))
            ).reshape(len(x), -1),
            "or nothing but padding in a window; expected windows of neighbours in one image",
        ),
    ],
)
def test_what_would_be_wrong_is_refused(function: Function, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graph_of(function, (4, 4, 1))


def test_logits_without_the_images_are_refused() -> None:
    with pytest.raises(ValueError, match="The logits do not depend on the images"):
        graph_of(lambda x: jnp.zeros((len(x), 3)), (4, 4, 1))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - jnp.broadcast_to(x.mean(0, keepdims=True), x.shape),
        lambda x: x + 3 * x[::-1],
        lambda x: x - 5 * jnp.broadcast_to(x.max(0, keepdims=True), x.shape),
    ],
)
def test_a_network_that_mixes_its_batch_is_refused(mix: Function) -> None:
    function = lambda x: FUNCTIONS["relu"](mix(x))
    with pytest.raises(ValueError, match="The logits of an image change with the other images of its batch"):
        certify(function, IMAGES, np.array([0, 1, 2]), threat_model=LINF, method="interval")


def test_it_is_no_pure_function() -> None:
    labels = jnp.array([0, 1, 2])
    with pytest.raises(ValueError, match="certify is called under jax.jit; expected arrays"):
        jax.jit(lambda x: certify(FUNCTIONS["relu"], x, labels, threat_model=LINF))(IMAGES)


def test_no_images() -> None:
    found = certify(FUNCTIONS["relu"], IMAGES[:0], np.zeros(0, np.int32), threat_model=LINF)
    assert found.certified.shape == (0,) and found.adversarial.shape == (0, 4, 4, 1)
