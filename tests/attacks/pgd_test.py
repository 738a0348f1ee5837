"""PGD against an independent NumPy version, and by its properties."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from smooth_net import raise_loss

from rap_jax.attacks import ThreatModel, pgd, pgd_restarts
from rap_jax.attacks.norms import NORMS

pytestmark = pytest.mark.usefixtures("optimised")

SHAPE = (6, 5, 4, 1)


@pytest.fixture(name="images")
def make_images() -> jax.Array:
    uniform = jax.random.uniform(jax.random.key(0), SHAPE)
    return jnp.clip(1.4 * uniform - 0.2, 0, 1)  # some pixels sit on the border of the box


def smooth_loss(images: jax.Array) -> jax.Array:
    """A per-example loss with a gradient that changes along the way."""
    weights = jnp.linspace(-2, 2, 20).reshape(1, 5, 4, 1)
    return jnp.sum(jnp.sin(3 * images * weights) + images * images * weights, axis=(1, 2, 3))


def numpy_gradient(images: np.ndarray) -> np.ndarray:
    weights = np.linspace(-2, 2, 20, dtype=np.float32).reshape(1, 5, 4, 1)
    return 3 * weights * np.cos(3 * images * weights) + 2 * images * weights


def numpy_pgd(images: np.ndarray, norm: str, epsilon: float, step_size: float, num_steps: int) -> np.ndarray:
    """Written from the definition, one example at a time, in float64."""
    found = []
    for clean in images.astype(np.float64):
        x = clean.copy()
        for _ in range(num_steps):
            g = numpy_gradient(x[None])[0]
            x = x + step_size * (np.sign(g) if norm == "linf" else g / np.linalg.norm(g))
            delta = x - clean
            if norm == "linf":
                delta = np.minimum(np.maximum(delta, -epsilon), epsilon)
            elif np.linalg.norm(delta) > epsilon:
                delta = delta * epsilon / np.linalg.norm(delta)
            x = np.minimum(np.maximum(clean + delta, 0), 1)
        found.append(x)
    return np.array(found)


@pytest.mark.parametrize("norm,epsilon,step_size", [("linf", 0.3, 0.1), ("linf", 0.05, 0.04), ("l2", 0.8, 0.3)])
def test_equals_numpy(images: jax.Array, norm: str, epsilon: float, step_size: float) -> None:
    settings = {"norm": norm, "epsilon": epsilon, "step_size": step_size, "num_steps": 7}
    found = raise_loss(pgd, jax.random.key(1), smooth_loss, images, random_start=False, **settings)
    expected = numpy_pgd(np.asarray(images), norm, epsilon, step_size, 7)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_each_step_may_have_a_size_of_its_own(images: jax.Array, norm: str) -> None:
    settings = {"threat_model": ThreatModel(norm, 0.4), "key": None, "random_start": False}
    sizes = [0.3, 0.1, 0.02]
    at_once = pgd_restarts(smooth_loss, images, step_size=sizes, num_steps=3, **settings).adversarial
    few = pgd_restarts(smooth_loss, images, step_size=np.float32(sizes[:2]), num_steps=2, **settings).adversarial
    alike = pgd_restarts(smooth_loss, images, step_size=[0.1] * 3, num_steps=3, **settings).adversarial
    np.testing.assert_array_equal(
        alike, pgd_restarts(smooth_loss, images, step_size=0.1, num_steps=3, **settings).adversarial
    )
    last = jnp.abs(at_once - few)  # of the last step alone, but for what ball and box take back
    assert 0 < float(last.max()) <= 0.02 + 1e-6 or norm == "l2"
    assert float(jnp.abs(at_once - alike).max()) > 0.05
    traced = jax.jit(lambda sizes: pgd_restarts(smooth_loss, images, step_size=sizes, num_steps=3, **settings))
    np.testing.assert_allclose(traced(jnp.float32(sizes)).adversarial, at_once, atol=1e-6)


@pytest.mark.parametrize(
    "sizes", [[0.1, 0.2], [], [0.1, -0.1, 0.1], [0.1, float("nan"), 0.1], [[0.1, 0.1, 0.1]], "abc"]
)
def test_other_step_sizes_are_refused(images: jax.Array, sizes: object) -> None:
    with pytest.raises(ValueError, match="step_size is "):
        pgd_restarts(
            smooth_loss, images, threat_model=ThreatModel("linf", 0.3), key=jax.random.key(0), step_size=sizes,  # type: ignore[arg-type]
            num_steps=3,
        )  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("num_steps", [0, 3])
@pytest.mark.parametrize("num_restarts", [1, 3])
def test_stays_in_ball_and_box(images: jax.Array, norm: str, epsilon: float, num_steps: int, num_restarts: int) -> None:
    attack = jax.jit(
        lambda key: raise_loss(
            pgd,
            key,
            smooth_loss,
            images,
            norm=norm,
            epsilon=epsilon,
            step_size=0.5,
            num_steps=num_steps,
            num_restarts=num_restarts,
        )
    )
    for seed in range(5):
        found = np.asarray(attack(jax.random.key(seed)))
        assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1
        delta = (found - np.asarray(images)).reshape(len(found), -1)
        size = np.abs(delta).max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)
        assert (size <= epsilon + 1e-6).all()


@pytest.mark.parametrize("norm", NORMS)
def test_attack_raises_the_loss_of_every_example(images: jax.Array, norm: str) -> None:
    found = raise_loss(
        pgd,
        jax.random.key(0),
        smooth_loss,
        images,
        norm=norm,
        epsilon=0.2,
        step_size=0.02,
        num_steps=20,
        random_start=False,
    )
    assert (smooth_loss(found) > smooth_loss(images)).all()


def test_more_restarts_are_never_worse(images: jax.Array) -> None:
    settings = {"step_size": 0.05, "num_steps": 2, "num_restarts": 4}
    threat_model, key = ThreatModel("linf", 0.3), jax.random.key(2)
    every = pgd_restarts(smooth_loss, images, threat_model=threat_model, key=key, **settings).adversarial
    best = raise_loss(pgd, key, smooth_loss, images, epsilon=0.3, **settings)
    chex.assert_shape(every, (4, *SHAPE))
    losses = np.asarray(jax.vmap(smooth_loss)(every))
    assert len(np.unique(losses.argmax(0))) > 1  # else the choice per example is not put to the test
    np.testing.assert_array_equal(smooth_loss(best), losses.max(0))


@pytest.mark.parametrize("norm", NORMS)
def test_a_key_for_each_example_frees_it_from_its_batch(images: jax.Array, norm: str) -> None:
    settings = {"threat_model": ThreatModel(norm, 0.3), "step_size": 0.05, "num_steps": 2, "num_restarts": 3}
    keys = jax.random.split(jax.random.key(4), len(images))
    together = pgd_restarts(smooth_loss, images, key=keys, **settings).adversarial
    for i, key in enumerate(keys):
        alone = pgd_restarts(smooth_loss, images[i : i + 1], key=key, **settings).adversarial
        np.testing.assert_allclose(together[:, i : i + 1], alone, atol=1e-5)
    others = jnp.asarray([4, 1, 3])
    some = pgd_restarts(smooth_loss, images[others], key=keys[others], **settings).adversarial
    np.testing.assert_allclose(together[:, others], some, atol=1e-5)
    assert jnp.abs(together - pgd_restarts(smooth_loss, images, key=keys[::-1], **settings).adversarial).max() > 0.1


def test_starts_fill_the_ball() -> None:
    grey = jnp.full((2000, 3), 0.5)
    starts = {
        norm: np.asarray(
            raise_loss(
                pgd, jax.random.key(0), lambda x: x.sum(1), grey, norm=norm, epsilon=0.4, step_size=0.1, num_steps=0
            )
        )
        - 0.5
        for norm in NORMS
    }
    assert starts["linf"].min() < -0.39 and starts["linf"].max() > 0.39
    np.testing.assert_allclose(np.abs(starts["linf"]).mean(), 0.2, atol=0.01)
    # Uniform in a ball of 3 dimensions: (r / epsilon)^3 is uniform on [0, 1].
    radius = np.linalg.norm(starts["l2"], axis=1) / 0.4
    np.testing.assert_allclose(np.sort(radius**3), np.linspace(0, 1, 2000), atol=0.05)


def test_zero_gradient_stays_finite(images: jax.Array) -> None:
    flat = lambda x: 0 * x.sum((1, 2, 3))
    for norm in NORMS:
        found = raise_loss(
            pgd, jax.random.key(0), flat, images, norm=norm, epsilon=0.1, step_size=0.1, num_steps=2, random_start=False
        )
        np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e25])
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_is_as_long_whatever_the_scale_of_the_loss(images: jax.Array, norm: str, scale: float) -> None:
    """Confident networks have gradients whose squares are zero in float32."""
    settings = {"norm": norm, "epsilon": 0.5, "step_size": 0.01, "num_steps": 1, "random_start": False}
    inside = 0.25 + images / 2  # nothing is clipped
    found = raise_loss(pgd, jax.random.key(0), lambda x: scale * smooth_loss(x), inside, **settings)
    np.testing.assert_allclose(NORMS[norm].size(found - inside), 0.01, rtol=1e-4)


def test_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8.*; expected floating point"):
        raise_loss(
            pgd, jax.random.key(0), smooth_loss, jnp.zeros(SHAPE, jnp.uint8), epsilon=0.1, step_size=0.1, num_steps=1
        )


def test_as_many_keys_as_images(images: jax.Array) -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    with pytest.raises(ValueError, match="There are 5 keys; expected one, or one for each of the 6 images"):
        raise_loss(pgd, keys, smooth_loss, images, epsilon=0.1, step_size=0.1, num_steps=1)


def test_no_gradient_flows_through(images: jax.Array) -> None:
    total = lambda x: raise_loss(pgd, jax.random.key(0), smooth_loss, x, epsilon=0.1, step_size=0.1, num_steps=1).sum()
    np.testing.assert_array_equal(jax.grad(total)(images), jnp.zeros_like(images))


def test_radius_may_be_traced(images: jax.Array) -> None:
    attack = jax.jit(
        chex.assert_max_traces(
            lambda epsilon: raise_loss(
                pgd, jax.random.key(0), smooth_loss, images, epsilon=epsilon, step_size=epsilon / 4, num_steps=2
            ),
            n=1,
        )
    )
    chex.clear_trace_counter()
    assert jnp.abs(attack(0.1) - images).max() <= 0.1 + 1e-6 < jnp.abs(attack(0.2) - images).max()


def test_breaks_a_model_of_another_library() -> None:
    model = nnx.Linear(20, 3, rngs=nnx.Rngs(0))
    images = jax.random.uniform(jax.random.key(1), (32, 20), minval=0.4, maxval=0.6)
    labels = model(images).argmax(-1)
    settings = {"threat_model": ThreatModel("linf", 0.3), "step_size": 0.1, "num_steps": 10}
    found = pgd(model, images, labels, key=jax.random.key(2), **settings)
    assert found.broken.mean() > 0.8
    np.testing.assert_array_equal(found.broken, model(found.adversarial).argmax(-1) != labels)


@pytest.mark.parametrize("bad", [{"num_steps": -1}, {"num_restarts": 0}, {"norm": "l1"}])
def test_refuses(images: jax.Array, bad: dict) -> None:
    settings = {"epsilon": 0.1, "step_size": 0.1, "num_steps": 1} | bad
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        raise_loss(pgd, jax.random.key(0), smooth_loss, images, **settings)


def test_restarts_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match="num_restarts is 2 without random_start; expected 1"):
        pgd_restarts(
            smooth_loss,
            jnp.full(SHAPE, 0.5),
            threat_model=ThreatModel("linf", 0.1),
            key=jax.random.key(0),
            step_size=0.1,
            num_steps=1,
            num_restarts=2,
            random_start=False,
        )
