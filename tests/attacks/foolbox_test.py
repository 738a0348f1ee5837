"""foolbox's JAX attacks on a network of this package, by the code of the docs, and their agreement with ours."""

from typing import Any, NamedTuple

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pages import DOCS, block_with

from rap_jax.attacks import ThreatModel, cw_l2, fgsm, pgd
from rap_jax.attacks.losses import cross_entropy
from rap_jax.config import ModelConfig
from rap_jax.models import Model, create_model

pytestmark = pytest.mark.e2e

PAGE = DOCS / "tutorials/auto_attack.md"
EPSILON, STEP_SIZE, NUM_STEPS = 8 / 255, 2 / 255, 10  # those of the docs' code


class Trained(NamedTuple):
    """A network after a little training, and the images that it was trained on."""

    model: Model
    params: Any
    images: jax.Array
    labels: jax.Array

    def logits(self, images: jax.Array) -> jax.Array:
        return self.model.apply(self.params, {}, images, train=False)[0]

    def soft_logits(self, images: jax.Array) -> jax.Array:
        """No softmax of these is so sure that its gradient is rounding alone, which two programs do not share."""
        return self.logits(images) / 10


def patterns(num_examples: int) -> tuple[jax.Array, jax.Array]:
    """8x8x1 images of 10 classes: each a pattern of its own under noise."""
    generator = np.random.default_rng(0)
    classes = generator.integers(0, 2, (10, 8, 8, 1))
    labels = np.arange(num_examples, dtype=np.int32) % 10
    noise = generator.uniform(0, 0.2, (num_examples, 8, 8, 1))
    return jnp.asarray(0.3 * classes[labels] + noise, jnp.float32), jnp.asarray(labels)


@pytest.fixture(name="trained", scope="module")
def train() -> Trained:
    model = create_model(ModelConfig("lenet_mnist", width=1), input_shape=(8, 8, 1), num_classes=10)
    params, _ = model.init(jax.random.key(0))
    images, labels = patterns(200)
    loss_fn = lambda params: cross_entropy(model.apply(params, {}, images, train=False)[0], labels).mean()
    tx = optax.adam(1e-2)

    def step(_: int, state: tuple[Any, Any]) -> tuple[Any, Any]:
        params, opt_state = state
        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    params, _ = jax.jit(lambda state: jax.lax.fori_loop(0, 25, step, state))((params, tx.init(params)))
    return Trained(model, params, images, labels)


@pytest.fixture(name="names", scope="module")
def run_readme(trained: Trained) -> dict[str, Any]:
    """What the docs' foolbox code leaves behind."""
    weights = {"model": trained.model, "params": trained.params, "batch_stats": {}}
    names = weights | {"images": trained.images, "labels": trained.labels}
    exec(block_with(PAGE, "import foolbox"), names)
    return names


def linf(trained: Trained, adversarial: jax.Array) -> float:
    return float(jnp.abs(adversarial - trained.images).max())


def test_readme_code_agrees_with_our_pgd(trained: Trained, names: dict[str, Any]) -> None:
    """Two random starts of one attack: mostly the same examples fall."""
    adversarial, broken = names["adversarial"], np.asarray(names["broken"])
    assert linf(trained, adversarial) <= EPSILON + 1e-6 and 0 <= adversarial.min() and adversarial.max() <= 1
    np.testing.assert_array_equal(broken, trained.logits(adversarial).argmax(-1) != trained.labels)

    settings = {"threat_model": ThreatModel("linf", EPSILON), "step_size": STEP_SIZE, "num_steps": NUM_STEPS}
    attack = jax.jit(lambda key: pgd(trained.logits, trained.images, trained.labels, key=key, **settings))
    ours_broken = np.asarray(attack(jax.random.key(0)).broken)
    assert 0.2 < names["robust_accuracy"] < 0.8  # at 0 or 1 everything would agree
    assert abs((1 - ours_broken.mean()) - names["robust_accuracy"]) <= 0.07
    assert (ours_broken == broken).mean() >= 0.85


@pytest.mark.parametrize("norm,epsilon", [("linf", 8 / 255), ("l2", 0.5)])
def test_fgsm_gives_the_same_images(trained: Trained, norm: str, epsilon: float) -> None:
    attack = {"linf": foolbox.attacks.LinfFastGradientAttack, "l2": foolbox.attacks.L2FastGradientAttack}[norm]
    fmodel = foolbox.models.JAXModel(jax.jit(trained.soft_logits), bounds=(0, 1))
    _, expected, _ = attack(random_start=False)(fmodel, trained.images, trained.labels, epsilons=epsilon)
    threat_model = ThreatModel(norm, epsilon)
    ours = jax.jit(lambda x: fgsm(trained.soft_logits, x, trained.labels, threat_model=threat_model))
    np.testing.assert_allclose(ours(trained.images).adversarial, expected, atol=1e-6)


def test_pgd_without_random_start_gives_the_same_images(trained: Trained) -> None:
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=5, random_start=False)
    fmodel = foolbox.models.JAXModel(jax.jit(trained.soft_logits), bounds=(0, 1))
    _, expected, _ = attack(fmodel, trained.images, trained.labels, epsilons=EPSILON)
    settings = {"threat_model": ThreatModel("linf", EPSILON), "step_size": STEP_SIZE, "num_steps": 5}
    ours = jax.jit(lambda x: pgd(trained.soft_logits, x, trained.labels, key=None, random_start=False, **settings))
    same = np.isclose(ours(trained.images).adversarial, expected, atol=1e-5)
    assert same.mean() > 0.999  # rounding decides where a slope is next to zero


def test_cw_finds_the_same_distances(trained: Trained, names: dict[str, Any]) -> None:
    images, labels = trained.images[:30], trained.labels[:30]
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=3, steps=12, stepsize=0.1, initial_const=0.1, abort_early=False
    )
    adversarial, _, _ = attack(names["fmodel"], images, labels, epsilons=None)
    found = jax.jit(
        lambda x: cw_l2(trained.logits, x, labels, num_search_steps=3, num_steps=12, learning_rate=0.1, initial_c=0.1)
    )(images)
    nothing = (adversarial == 0).all((1, 2, 3))  # what foolbox returns where it has found none
    lengths = jnp.sqrt(jnp.square(adversarial - images).sum((1, 2, 3)))
    ours = jnp.sqrt(jnp.square(found.adversarial - images).sum((1, 2, 3)))
    distances = jnp.where(found.broken, ours, jnp.inf)
    same = np.isclose(distances, jnp.where(nothing, jnp.inf, lengths), rtol=1e-3, atol=1e-4)
    assert 0.5 < found.broken.mean() and same.mean() >= 0.9  # a kink of the network may lead rounding astray
