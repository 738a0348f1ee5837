"""APGD against a plain NumPy version for one example, and its properties."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rap_jax.attacks import ThreatModel
from rap_jax.attacks.apgd import Apgd, apgd, apgd_targeted, checkpoint_periods
from rap_jax.attacks.losses import cross_entropy, dlr, targeted_dlr
from rap_jax.attacks.stepwise import rank_targets

N, D, K = 6, (5, 4, 1), 5
RNG = np.random.default_rng(0)
W1 = RNG.normal(size=(20, 16)).astype(np.float32)
W2 = RNG.normal(size=(16, K)).astype(np.float32)
IMAGES = RNG.uniform(0, 1, (N, *D)).astype(np.float32)


def logits_fn(images: jax.Array) -> jax.Array:
    """A small smooth network."""
    return jnp.tanh(images.reshape(len(images), -1) @ W1) @ W2


THREAT_MODEL = ThreatModel("linf", 0.1)
LABELS = np.asarray(logits_fn(jnp.asarray(IMAGES)).argmax(-1)).astype(np.int32)


class NumpyPath(NamedTuple):
    """Images and step sizes after each step, highest loss, whether any image was misclassified."""

    ends: list[np.ndarray]
    sizes: list[float]
    best_loss: float
    broken: bool


def numpy_apgd(
    gradient_fn: Callable[[np.ndarray], tuple[float, np.ndarray, bool]],
    image: np.ndarray,
    first: np.ndarray,
    *,
    epsilon: float,
    norm: str,
    num_steps: int,
) -> NumpyPath:
    """Algorithm 1 of the paper with the official checkpoints, for one image."""

    def project(x: np.ndarray) -> np.ndarray:
        delta = x - image
        if norm == "linf":
            delta = np.clip(delta, -epsilon, epsilon)
        else:
            delta = delta * min(1.0, epsilon / max(np.sqrt((delta**2).sum()), 1e-12))
        return np.clip(image + delta, 0, 1)

    def direction(g: np.ndarray) -> np.ndarray:
        return np.sign(g) if norm == "linf" else g / np.sqrt((g**2).sum())

    x = before = first
    loss, gradient, broken = gradient_fn(x)
    best, best_gradient, best_loss = x, gradient, loss
    size, period, since = 2 * epsilon, max(int(0.22 * num_steps), 1), 0
    halved, checked_loss, losses, ends, sizes = True, loss, [0.0], [], []
    for step in range(num_steps):
        share = 1.0 if step == 0 else 0.75
        z = project(x + size * direction(gradient))
        moved = project(x + share * (z - x) + (1 - share) * (x - before))
        before, x = x, moved
        loss, gradient, wrong = gradient_fn(x)
        broken |= wrong
        losses.append(loss)
        if loss > best_loss:
            best, best_gradient, best_loss = x, gradient, loss
        since += 1
        if since == period:
            rises = sum(losses[-i] > losses[-i - 1] for i in range(1, period + 1))
            reduce = rises <= 0.75 * period or (not halved and checked_loss >= best_loss)
            halved, checked_loss = reduce, best_loss
            if reduce:
                size, x, gradient = size / 2, best, best_gradient
            period, since = max(period - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1)), 0
        sizes.append(size)
        ends.append(x)
    return NumpyPath(ends, sizes, best_loss, broken)


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.1), ("l2", 0.4)])
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_path_is_that_of_the_paper(norm: str, epsilon: float, loss: str) -> None:
    with jax.enable_x64(True):  # whether a loss has risen must not be decided by rounding
        check_path(norm, epsilon, loss)


def check_path(norm: str, epsilon: float, loss: str) -> None:
    steps, images, labels = 40, jnp.asarray(IMAGES, jnp.float64), jnp.asarray(LABELS)
    attack = Apgd(
        ThreatModel(norm, epsilon), "dlr" if loss == "dlr" else "ce", steps, num_targets=2 * (loss == "targeted")
    )
    targets = jnp.argsort(logits_fn(images))[:, -3] if loss == "targeted" else labels
    loss_fns = {"ce": cross_entropy, "dlr": dlr, "targeted": lambda z, y: targeted_dlr(z, y, targets)}
    loss_fn = lambda x: loss_fns[loss](logits_fn(x), labels)
    gradient_fn = jax.jit(jax.value_and_grad(lambda x: loss_fn(x).sum()))

    keys, starts = jax.random.split(jax.random.key(0), N), jnp.ones(N, jnp.int32)
    state, sizes, ends = attack.start(logits_fn, keys, images, labels, starts), [], []
    first, step = np.asarray(state.current), jax.jit(lambda state: attack.advance(logits_fn, state, 1))
    for _ in range(steps):
        state = step(state)
        sizes.append(np.asarray(state.step_size))
        ends.append(np.asarray(state.current))
    for i in range(N):

        def at(x: np.ndarray, i: int = i) -> tuple[float, np.ndarray, bool]:
            batch = images.at[i].set(x)
            wrong = int(logits_fn(batch)[i].argmax()) != LABELS[i]
            return float(loss_fn(batch)[i]), np.asarray(gradient_fn(batch)[1][i]), wrong

        expected = numpy_apgd(at, np.asarray(images[i]), first[i], epsilon=epsilon, norm=norm, num_steps=steps)
        # At the end some stand still, and rounding decides whether a loss has risen.
        np.testing.assert_allclose([size[i] for size in sizes[:32]], expected.sizes[:32], rtol=1e-6)
        np.testing.assert_allclose([end[i] for end in ends[:32]], expected.ends[:32], atol=1e-6)
        assert float(state.best_loss[i]) == pytest.approx(expected.best_loss, rel=1e-6)
        assert bool(state.broken[i]) == expected.broken
    assert min(sizes[31]) < epsilon / 4  # a schedule that never halves would leave half of the rule untested


def test_checkpoints_are_those_of_the_official_code() -> None:
    periods = checkpoint_periods(100)
    assert [int(step) + 1 for step in np.flatnonzero(periods)] == [22, 41, 57, 70, 80, 87, 93, 99]
    assert periods[periods > 0].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
    assert checkpoint_periods(1).tolist() == [1]


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.15), ("l2", 0.5)])
def test_stays_inside_ball_and_box_and_tells_the_truth(norm: str, epsilon: float) -> None:
    threat_model = ThreatModel(norm, epsilon)
    run = jax.jit(lambda key: apgd(logits_fn, IMAGES, LABELS, threat_model=threat_model, key=key, num_steps=20))
    found = run(jax.random.key(1))
    delta = np.asarray(found.adversarial) - IMAGES
    size = np.abs(delta).max((1, 2, 3)) if norm == "linf" else np.sqrt((delta**2).sum((1, 2, 3)))
    assert size.max() <= epsilon * (1 + 1e-5)
    assert found.adversarial.min() >= 0 and found.adversarial.max() <= 1
    wrong = np.asarray(logits_fn(found.adversarial).argmax(-1)) != LABELS
    np.testing.assert_array_equal(wrong[found.broken], True)
    assert found.broken.any()
    np.testing.assert_array_equal(np.asarray(found.adversarial)[~found.broken], IMAGES[~found.broken])
    np.testing.assert_array_equal(found.adversarial, run(jax.random.key(1)).adversarial)


def test_more_restarts_break_no_less() -> None:
    near = ThreatModel("linf", 0.06)
    one, five = (
        apgd(logits_fn, IMAGES, LABELS, threat_model=near, key=jax.random.key(2), num_steps=5, num_restarts=restarts)
        for restarts in (1, 5)
    )
    assert (five.broken | ~one.broken).all()
    np.testing.assert_array_equal(five.adversarial[one.broken], one.adversarial[one.broken])


def test_an_example_does_not_depend_on_its_batch() -> None:
    keys = jax.random.split(jax.random.key(3), N)
    settings = {"threat_model": THREAT_MODEL, "num_targets": 2, "num_steps": 12}
    every = apgd_targeted(logits_fn, IMAGES, LABELS, key=keys, **settings)
    alone = apgd_targeted(logits_fn, IMAGES[2:3], LABELS[2:3], key=keys[2:3], **settings)
    assert bool(every.broken[2]) == bool(alone.broken[0])
    np.testing.assert_allclose(every.adversarial[2], alone.adversarial[0], atol=1e-4)


def test_pieces_are_the_whole() -> None:
    attack = Apgd(THREAT_MODEL, num_steps=20)
    arguments = (jax.random.split(jax.random.key(0), N), jnp.asarray(IMAGES), jnp.asarray(LABELS), jnp.zeros(N, int))
    state = attack.start(logits_fn, *arguments)
    whole, pieces = attack.advance(logits_fn, state, 20), state
    for _ in range(4):
        pieces = attack.advance(logits_fn, pieces, 5)
    for name in ("current", "best_loss", "step_size", "adversarial"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=1e-5)


def test_a_randomised_network_is_averaged_over_its_draws() -> None:
    noisy = lambda images, key: logits_fn(images) + 2 * jax.random.normal(key, (len(images), K))
    keys = jax.random.split(jax.random.key(0), N)
    attack = Apgd(THREAT_MODEL, num_steps=3, num_samples=3)
    state = attack.start(noisy, keys, jnp.asarray(IMAGES), jnp.asarray(LABELS), jnp.zeros(N, int))
    for i, key in enumerate(keys):
        loss_fn = lambda x, draw, i=i: cross_entropy(noisy(x, draw), jnp.asarray(LABELS[i : i + 1])).sum()
        draws = [jax.random.fold_in(jax.random.fold_in(key, 0), number) for number in range(3)]
        gradients = [jax.grad(loss_fn)(state.current[i : i + 1], draw)[0] for draw in draws]
        np.testing.assert_allclose(state.gradient[i], np.mean(gradients, 0), atol=1e-5)
        assert np.abs(gradients[0] - gradients[1]).max() > 1e-3
    assert attack.advance(noisy, state, 3).broken.shape == (N,)


@pytest.mark.parametrize("num_targets", [0, 2])
def test_noise_follows_from_an_examples_own_key(num_targets: int) -> None:
    noisy = lambda images, key: logits_fn(images) + 2 * jax.random.normal(key, (len(images), K))
    keys, images, labels = jax.random.split(jax.random.key(0), N), jnp.asarray(IMAGES), jnp.asarray(LABELS)
    attack = Apgd(THREAT_MODEL, num_steps=3, num_samples=2, num_targets=num_targets)

    @jax.jit
    def end_of(keys: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
        state = attack.start(noisy, keys, images, labels, jnp.zeros(len(keys), int))
        return attack.advance(noisy, state, 3).current

    together, alone = end_of(keys, images, labels), end_of(keys[2:3], images[2:3], labels[2:3])
    np.testing.assert_allclose(together[2], alone[0], atol=1e-5)
    np.testing.assert_allclose(end_of(keys[::-1], images[::-1], labels[::-1])[::-1], together, atol=1e-5)


def test_targets_are_ranked_at_the_clean_image() -> None:
    logits = jnp.asarray([[0.1, 0.9, 0.5, 0.7], [4.0, 3.0, 2.0, 1.0]])
    assert rank_targets(logits, jnp.asarray([0, 2]), 3).tolist() == [3, 3]
    with pytest.raises(ValueError, match="num_targets is 4; expected at most 3 with 4 classes"):
        rank_targets(logits, jnp.asarray([0, 0]), 4)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="loss is 'mse'; expected one of ce, dlr"):
        apgd(logits_fn, IMAGES, LABELS, threat_model=THREAT_MODEL, key=jax.random.key(0), loss="mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images are uint8\[6, 5, 4, 1\]"):
        apgd(logits_fn, (IMAGES * 255).astype(np.uint8), LABELS, threat_model=THREAT_MODEL, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"labels are int32\[5\]"):
        apgd(logits_fn, IMAGES, LABELS[:5], threat_model=THREAT_MODEL, key=jax.random.key(0))
    with pytest.raises(ValueError, match="keys of shape"):
        apgd(logits_fn, IMAGES, LABELS, threat_model=THREAT_MODEL, key=jax.random.split(jax.random.key(0), 5))
