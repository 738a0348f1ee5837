"""The attacks on models of other libraries: Flax NNX, Equinox, and a plain function of a dict of weights."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rap_jax.attacks import AttackResult, ThreatModel, cw_l2, fgsm, momentum_pgd, pgd
from rap_jax.attacks.losses import cross_entropy

NUM_PIXELS, NUM_HIDDEN, NUM_CLASSES = 20, 16, 3
EPSILON = 0.4
THREAT_MODEL = ThreatModel("linf", EPSILON)


class Classifier(NamedTuple):
    """A model of any library. Attributes: weights: a pytree of arrays; apply: (weights, images) -> logits [N, K]."""

    weights: Any
    apply: Callable[[Any, jax.Array], jax.Array]


class NnxNetwork(nnx.Module):
    """BatchNorm and dropout: layers that training and evaluation use differently."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(NUM_PIXELS, NUM_HIDDEN, rngs=rngs)
        self.norm = nnx.BatchNorm(NUM_HIDDEN, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.logits = nnx.Linear(NUM_HIDDEN, NUM_CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.logits(self.dropout(nnx.relu(self.norm(self.hidden(images)))))


def of_nnx() -> Classifier:
    network = NnxNetwork(nnx.Rngs(0))
    network.eval()
    graph, state = nnx.split(network)
    return Classifier(state, lambda state, images: nnx.merge(graph, state)(images))


def of_equinox() -> Classifier:
    equinox = pytest.importorskip("equinox")
    network = equinox.nn.MLP(NUM_PIXELS, NUM_CLASSES, NUM_HIDDEN, depth=1, key=jax.random.key(0))
    weights, static = equinox.partition(network, equinox.is_array)
    return Classifier(weights, lambda weights, images: jax.vmap(equinox.combine(weights, static))(images))


def of_plain_function() -> Classifier:
    first, second = jax.random.split(jax.random.key(0))
    weights = {
        "hidden": jax.random.normal(first, (NUM_PIXELS, NUM_HIDDEN)) / NUM_PIXELS**0.5,
        "logits": jax.random.normal(second, (NUM_HIDDEN, NUM_CLASSES)) / NUM_HIDDEN**0.5,
    }
    return Classifier(weights, lambda weights, images: jnp.tanh(images @ weights["hidden"]) @ weights["logits"])


LIBRARIES = {"nnx": of_nnx, "equinox": of_equinox, "plain function": of_plain_function}


@pytest.fixture(name="classifier", params=LIBRARIES)
def make_classifier(request: pytest.FixtureRequest) -> Classifier:
    return LIBRARIES[request.param]()


@pytest.fixture(name="images")
def make_images() -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (32, NUM_PIXELS), minval=0.4, maxval=0.6)


STEPS: dict[str, Any] = {"step_size": 0.1, "num_steps": 10}
ATTACKS: dict[str, Callable[..., AttackResult]] = {
    "fgsm": fgsm,
    "pgd": functools.partial(pgd, num_restarts=2, **STEPS),
    "momentum_pgd": functools.partial(momentum_pgd, **STEPS),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_raises_the_loss_and_breaks(classifier: Classifier, images: jax.Array, name: str) -> None:
    labels = classifier.apply(classifier.weights, images).argmax(-1)  # all are right before the attack

    @jax.jit
    def attack(key: jax.Array, weights: Any, images: jax.Array) -> AttackResult:
        logits_fn = lambda x: classifier.apply(weights, x)
        return ATTACKS[name](logits_fn, images, labels, threat_model=THREAT_MODEL, key=key)

    found = attack(jax.random.key(2), classifier.weights, images)
    assert THREAT_MODEL.contains(found.adversarial, images).all()
    before, after = (classifier.apply(classifier.weights, x) for x in (images, found.adversarial))
    assert (cross_entropy(after, labels) > cross_entropy(before, labels)).all()
    np.testing.assert_array_equal(found.broken, after.argmax(-1) != labels)
    assert found.broken.mean() > 0.7


def test_cw_breaks_nearby(classifier: Classifier, images: jax.Array) -> None:
    labels = classifier.apply(classifier.weights, images).argmax(-1)

    @jax.jit
    def attack(weights: Any, images: jax.Array) -> Any:
        logits_fn = lambda x: classifier.apply(weights, x)
        return cw_l2(logits_fn, images, labels, num_steps=100, num_search_steps=6, initial_c=0.01)

    found = attack(classifier.weights, images)
    assert (classifier.apply(classifier.weights, found.adversarial).argmax(-1) != labels).all()
    corner = EPSILON * NUM_PIXELS**0.5  # as far as the other attacks go
    distances = jnp.linalg.norm(found.adversarial - images, axis=1)
    assert found.broken.all() and (distances > 0).all() and distances.max() < corner


def test_batch_norm_of_nnx_is_in_evaluation_mode(images: jax.Array) -> None:
    """The attack of an image is then its own: it does not see the batch, and dropout draws nothing."""
    classifier = of_nnx()
    labels = classifier.apply(classifier.weights, images).argmax(-1)
    logits_fn = lambda x: classifier.apply(classifier.weights, x)
    attack = lambda x, labels: fgsm(logits_fn, x, labels, threat_model=THREAT_MODEL).adversarial
    np.testing.assert_allclose(attack(images, labels)[:1], attack(images[:1], labels[:1]), atol=1e-6)
