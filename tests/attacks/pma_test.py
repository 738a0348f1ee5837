"""PMA against its rule in NumPy, one example at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smooth_net import examples, logits_fn

from rap_jax.attacks import ThreatModel, pma
from rap_jax.attacks.pma import Pma, share_of, weights_of
from rap_jax.attacks.stepwise import run_attack

NUMBER = 12
IMAGES, LABELS = map(jnp.asarray, examples(NUMBER, wrong=2))
KEYS = jax.random.split(jax.random.key(0), NUMBER)
RADIUS = {"linf": 0.04, "l2": 0.4}
by_norm = pytest.mark.parametrize("norm", RADIUS)


def numpy_share(i: int, num_steps: int) -> float:
    """The step over the radius, as in the authors' code."""
    change = num_steps / 2
    since = i - change - 1 if i > change else i - 1
    return 2 * 0.5 * (1 + math.cos(since / (num_steps - change) * math.pi))


def loss_of(i: int, raises_wrong: bool, num_steps: int, p_wrong: jax.Array, p_right: jax.Array) -> jax.Array:
    """The loss of a step, as in the authors' code."""
    if i < 1:
        return p_right
    if i < num_steps / 2:
        return p_wrong if raises_wrong else -p_right
    return p_wrong - p_right


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_schedule_of_the_authors(num_steps: int) -> None:
    numbers = jnp.arange(num_steps, dtype=jnp.int32)
    expected = [numpy_share(i, num_steps) for i in range(num_steps)]
    np.testing.assert_allclose(share_of(numbers, num_steps), expected, atol=1e-5)
    for raises_wrong in (False, True):
        of_wrong, of_right = weights_of(numbers, jnp.full(num_steps, raises_wrong), num_steps)
        for i in range(num_steps):
            expected_loss = loss_of(i, raises_wrong, num_steps, jnp.float32(0.3), jnp.float32(0.6))
            assert float(of_wrong[i] * 0.3 + of_right[i] * 0.6) == pytest.approx(float(expected_loss), abs=1e-6)


@pytest.mark.parametrize("start", [0, 1])
def test_it_goes_the_way_of_the_rule(start: int) -> None:
    attack = Pma(ThreatModel("linf", 0.04), num_steps=8)
    state = attack.start(logits_fn, KEYS, IMAGES, LABELS, jnp.full(NUMBER, start, jnp.int32))
    step = jax.jit(lambda state: attack.step(logits_fn, state))

    @jax.jit
    def gradient_at(x: jax.Array, i: int) -> jax.Array:
        def loss(x: jax.Array) -> jax.Array:
            p = jax.nn.softmax(logits_fn(x))
            right = jnp.take_along_axis(p, LABELS[:, None], 1)[:, 0]
            wrong = jnp.where(jnp.arange(p.shape[1])[None] == LABELS[:, None], 0, p).max(1)
            branches = [lambda w, r, i=i: loss_of(i, start == 1, 8, w, r).sum() for i in range(8)]
            return jax.lax.switch(i, branches, wrong, right)

        return jax.grad(loss)(x)

    x, clean, seen = np.asarray(state.current), np.asarray(IMAGES), []
    for i in range(8):
        seen.append(np.asarray(logits_fn(jnp.asarray(x)).argmax(-1) != LABELS))
        x = x + np.float32(0.04 * numpy_share(i, 8)) * np.sign(gradient_at(jnp.asarray(x), i))
        x = np.clip(np.clip(x, clean - 0.04, clean + 0.04), 0, 1)
        state = step(state)
        np.testing.assert_allclose(state.current, x, atol=1e-5)
    np.testing.assert_array_equal(state.broken, np.any(seen, axis=0))


@by_norm
def test_it_stays_inside_and_breaks_what_it_says(norm: str) -> None:
    threat_model = ThreatModel(norm, RADIUS[norm])
    run = jax.jit(lambda key: pma(logits_fn, IMAGES, LABELS, threat_model=threat_model, key=key, num_steps=20))
    found = run(KEYS)
    np.testing.assert_array_equal(logits_fn(found.adversarial).argmax(-1) != LABELS, found.broken)
    assert threat_model.contains(found.adversarial, IMAGES).all()
    assert 2 < found.broken.sum() < NUMBER
    alone = run_attack(Pma(threat_model, 20), logits_fn, IMAGES[3:5], LABELS[3:5], key=KEYS[3:5])
    np.testing.assert_array_equal(alone.broken, found.broken[3:5])
    np.testing.assert_allclose(alone.adversarial, found.adversarial[3:5], atol=1e-4)


def test_refuses_settings() -> None:
    with pytest.raises(ValueError, match="num_steps is -1; expected at least 0 steps"):
        Pma(ThreatModel("linf", 0.1), num_steps=-1)
