"""Where a number depends on a product of float32, the program asks for one in float32, whatever the default is."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rap_jax._runtime.functions import exact_products, inner_jaxprs
from rap_jax._runtime.mesh import make_mesh
from rap_jax.attacks import ThreatModel
from rap_jax.config import AttackConfig, ModelConfig
from rap_jax.evaluation.auto_attack.programs import Programs
from rap_jax.evaluation.correctness import Examples, attack_program, clean_program
from rap_jax.models import create_model

EXACT = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
LINF = ThreatModel("linf", 0.1)
MODEL = create_model(ModelConfig(width=1), input_shape=(28, 28, 1), num_classes=10, implementation="xla")
NUM_PRODUCTS = 4  # two convolutions and two dense layers


def precisions(jaxpr: Any) -> Iterator[Any]:
    """Of every product, at any depth, in order."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for inner in inner_jaxprs(equation):
            yield from precisions(inner)


def test_a_function_keeps_the_precision_that_it_asks_for() -> None:
    x = jnp.ones((2, 2), jnp.float32)
    ours = lambda x: x @ x + jnp.dot(x, x, precision="default")
    default = (lax.Precision.DEFAULT, lax.Precision.DEFAULT)
    assert list(precisions(jax.make_jaxpr(exact_products(ours))(x))) == [EXACT, default]
    assert next(iter(precisions(jax.make_jaxpr(ours)(x)))) is None


@pytest.fixture(scope="module")
def given() -> tuple[Any, ...]:
    numbers = np.arange(2, dtype=np.int32)
    examples = Examples(np.zeros((2, 28, 28, 1), np.uint8), numbers, numbers, numbers)
    return jax.eval_shape(MODEL.init, jax.random.key(0)), jax.random.key(0), examples


def test_clean_images_are_judged_exactly(given: tuple[Any, ...]) -> None:
    program = clean_program(MODEL, LINF, make_mesh(jax.devices()[:1]))
    assert list(precisions(jax.make_jaxpr(program)(*given))) == [EXACT] * NUM_PRODUCTS


def test_attacked_images_are_judged_exactly(given: tuple[Any, ...]) -> None:
    """The attack goes by the device's own products."""
    program = attack_program(MODEL, AttackConfig(num_steps=2), LINF, make_mesh(jax.devices()[:1]))
    found = list(precisions(jax.make_jaxpr(program)(*given)))
    assert found[-NUM_PRODUCTS:] == [EXACT] * NUM_PRODUCTS
    assert set(found[:-NUM_PRODUCTS]) == {None} and len(found) > NUM_PRODUCTS


def test_auto_attack_judges_exactly() -> None:
    kernel, numbers = jnp.ones((4, 3), jnp.float32), np.zeros(2, np.int32)
    images = np.zeros((2, 2, 2, 1), np.float32)
    logits_fn = lambda captured, images: images.reshape(len(images), -1) @ captured[0]
    programs = Programs(logits_fn, [kernel], make_mesh(jax.devices()[:1]), threat_model=LINF, randomized=False)
    judged = jax.make_jaxpr(programs.correctness)([kernel], jax.random.key(0), numbers, images, images, numbers)
    assert list(precisions(judged)) == [EXACT]
    assert list(precisions(jax.make_jaxpr(programs.unbound([kernel]))(images))) == [None]
