"""Constraint relaxation against the rule of its authors' code, followed by one example at a time."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smooth_net import CLASSES, examples, logits_fn

from rap_jax.attacks import ThreatModel, relaxation
from rap_jax.attacks.relaxation import Relaxation, RelaxationState
from rap_jax.attacks.stepwise import fold_in_each

NUMBER, EPSILON = 8, 0.04
IMAGES, LABELS = map(jnp.asarray, examples(NUMBER, wrong=1))
KEYS = jax.random.split(jax.random.key(0), NUMBER)
RADIUS = {"linf": EPSILON, "l2": 0.4}
LINF = ThreatModel("linf", EPSILON)


def draw(example: int, stream: int, number: int) -> np.ndarray:
    """A point of the ball around 0, as the attack draws it."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(fold_in_each(KEYS[example : example + 1], stream), number)
    return np.asarray(LINF.random_start(keys, IMAGES[example : example + 1])[0])


@jax.jit
def difference(x: jax.Array, target: int, label: int) -> tuple[jax.Array, jax.Array]:
    """Logits of an image, and the gradient of that of the target less that of the label."""

    def value(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(x[None])[0]
        return logits[target] - logits[label], logits

    gradient, logits = jax.grad(value, has_aux=True)(x)
    return logits, gradient


def follow(example: int, attack: Relaxation, targets: list[int]) -> Iterator[tuple[np.ndarray, bool, bool]]:
    """After each step: where it led, whether the example is broken, and whether nothing is left to try."""
    clean, label = np.asarray(IMAGES[example]), int(LABELS[example])
    into = lambda x, radius: np.clip(clean + np.clip(x - clean, -radius, radius), 0, 1)
    wanted, draws = list(range(len(targets))), 0
    for passes in range(attack.num_restarts):
        near: set[int] = set()
        for place in wanted:
            x, scale = np.clip(clean + draw(example, 1, draws), 0, 1), 1.0
            for i in range(attack.steps_per_target):
                scale = max(scale * 0.5, 0.05) if i % 30 == 0 else scale
                if i % 30 == 20:
                    x = np.clip(into(x, EPSILON * (1 - scale)) + scale * draw(example, 2, draws), 0, 1)
                logits, gradient = map(np.asarray, difference(jnp.asarray(x), targets[place], label))
                moved = into(x + EPSILON * scale * np.sign(gradient), EPSILON * (1 + scale * (i % 30 < 10)))
                if i % 30 > 10:
                    ahead, wrong = logits[label] - logits[targets[place]], logits.argmax() != label
                else:
                    logits = np.asarray(logits_fn(jnp.asarray(into(moved, EPSILON))[None])[0])
                    ahead, wrong = logits[label] - np.delete(logits, label).max(), logits.argmax() != label
                near |= {place} if ahead < 0.05 else set()
                x, draws = moved, draws + 1
                over = i + 1 == attack.steps_per_target or (i % 30 == 19 and ahead > scale)
                last = over and place == wanted[-1]
                done = last and (not near or passes + 1 == attack.num_restarts)
                yield x, wrong, done
                if wrong or done:
                    return
                if over:
                    break
        wanted = sorted(near)


def of_all(state: RelaxationState) -> Any:
    return jax.tree.map(np.asarray, state._replace(keys=None))


@pytest.mark.parametrize("steps_per_target", [45, 90])
def test_it_goes_the_way_of_the_rule(steps_per_target: int) -> None:
    attack = Relaxation(LINF, num_targets=2, num_restarts=2, steps_per_target=steps_per_target)
    start = jax.jit(lambda: attack.start(logits_fn, KEYS, IMAGES, LABELS, jnp.zeros(NUMBER, jnp.int32)))()
    start = start._replace(broken=jnp.zeros(NUMBER, bool))  # as if PGD had found nothing
    step = jax.jit(lambda state: attack.step(logits_fn, state))
    states, state = [of_all(start)], start
    for _ in range(attack.num_steps):
        state = step(state)
        states.append(of_all(state))
    outcomes = set()
    for example in range(NUMBER):
        path = list(follow(int(example), attack, states[0].targets[example].tolist()))
        for number, (x, wrong, done) in enumerate(path, start=1):
            found = states[number]
            assert found.broken[example] == wrong
            assert wrong or found.finished[example] == done
            if number < len(path) and found.iteration[example] > 0:  # else it begins anew
                np.testing.assert_allclose(found.current[example], x, atol=1e-5)
        outcomes.add(bool(wrong))
        assert states[-1].broken[example] == wrong, "it went on after the end"
    assert outcomes == {True, False}


def test_pgd_chooses_the_targets() -> None:
    """Ten steps of epsilon/2, the sixth of epsilon/4, on cross-entropy; the likeliest wrong classes there."""
    attack = Relaxation(LINF, num_targets=CLASSES - 1)
    state = attack.start(logits_fn, KEYS, IMAGES, LABELS, jnp.zeros(NUMBER, jnp.int32))
    x = jnp.clip(IMAGES + LINF.random_start(fold_in_each(KEYS, 0), IMAGES), 0, 1)
    rows, broken = np.arange(NUMBER), np.zeros(NUMBER, bool)
    loss = lambda x: -jax.nn.log_softmax(logits_fn(x))[rows, LABELS].sum()
    for number in range(10):
        broken |= np.asarray(logits_fn(x).argmax(1) != LABELS)
        size = EPSILON * (0.25 if number == 5 else 0.5)
        x = LINF.perturb(IMAGES, x + size * jnp.sign(jax.grad(loss)(x)) - IMAGES)
    logits = np.array(logits_fn(x))
    np.testing.assert_array_equal(state.broken, broken | (logits.argmax(1) != np.asarray(LABELS)))
    logits[rows, LABELS] = -np.inf
    np.testing.assert_array_equal(state.targets, np.argsort(-logits, axis=1)[:, :-1])


@pytest.mark.parametrize("norm", RADIUS)
def test_it_stays_inside_and_breaks_what_it_says(norm: str) -> None:
    threat_model = ThreatModel(norm, RADIUS[norm])
    run = jax.jit(lambda key: relaxation(logits_fn, IMAGES, LABELS, threat_model=threat_model, key=key, num_restarts=2))
    found = run(KEYS)
    np.testing.assert_array_equal(logits_fn(found.adversarial).argmax(-1) != LABELS, found.broken)
    assert threat_model.contains(found.adversarial, IMAGES).all()
    assert 1 < found.broken.sum() < NUMBER


def test_an_example_goes_its_own_way() -> None:
    attack = Relaxation(LINF, num_restarts=2)
    start = lambda which: attack.start(
        logits_fn, KEYS[which], IMAGES[which], LABELS[which], jnp.zeros(len(LABELS[which]), jnp.int32)
    )
    advance = jax.jit(lambda state: attack.advance(logits_fn, state, 40))
    every, few = advance(start(slice(None))), advance(start(slice(4, 7)))
    for name in ("broken", "finished"):
        np.testing.assert_array_equal(getattr(every, name)[4:7], getattr(few, name))
    going = ~np.asarray(few.broken | few.finished)
    np.testing.assert_allclose(every.current[4:7][going], few.current[going], atol=1e-4)


def test_refuses_settings() -> None:
    with pytest.raises(ValueError, match="num_targets is 0; expected at least 1 target"):
        Relaxation(LINF, num_targets=0)
    attack = Relaxation(LINF, num_targets=CLASSES)
    with pytest.raises(ValueError, match=f"num_targets is {CLASSES}; expected at most {CLASSES - 1}"):
        attack.start(logits_fn, KEYS, IMAGES, LABELS, jnp.zeros(NUMBER, jnp.int32))
