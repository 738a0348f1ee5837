"""PGD in pieces takes the same way as `pgd`, and stops at the first image that is misclassified."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smooth_net import examples, logits_fn

from rap_jax.attacks import pgd
from rap_jax.attacks.losses import cross_entropy, margin
from rap_jax.attacks.norms import is_inside
from rap_jax.attacks.stepwise import run_attack
from rap_jax.attacks.stepwise_pgd import Pgd

IMAGES, LABELS = map(jnp.asarray, examples(30, wrong=2))
KEYS = jax.random.split(jax.random.key(0), 30)


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.04), ("l2", 0.4)])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_it_goes_the_way_of_pgd(norm: str, epsilon: float, loss: str) -> None:
    attack = Pgd(epsilon, epsilon / 4, norm, loss, num_steps=8)  # type: ignore[arg-type]
    state = attack.start(logits_fn, KEYS, IMAGES, LABELS, jnp.zeros(30, jnp.int32))
    state = attack.advance(logits_fn, attack.advance(logits_fn, state, 3), 5)
    loss_fn = {"ce": cross_entropy, "margin": margin}[loss]
    end = pgd(
        KEYS,
        lambda x: loss_fn(logits_fn(x), LABELS),
        IMAGES,
        epsilon=epsilon,
        step_size=epsilon / 4,
        num_steps=8,
        norm=norm,
    )
    np.testing.assert_allclose(state.current, end, atol=1e-5)
    wrong_at_the_end = np.asarray(logits_fn(end).argmax(-1) != LABELS)
    assert np.asarray(state.broken)[wrong_at_the_end].all()
    np.testing.assert_array_equal(logits_fn(state.adversarial).argmax(-1) != LABELS, state.broken)
    assert is_inside(state.adversarial, IMAGES, epsilon=epsilon, norm=norm).all()


def test_more_starts_break_more() -> None:
    broken = lambda restarts: np.asarray(
        run_attack(Pgd(0.04, 0.01, num_steps=5, num_restarts=restarts), logits_fn, KEYS, IMAGES, LABELS).broken
    )
    one, three = broken(1), broken(3)
    assert three[one].all() and 2 < one.sum() <= three.sum() < 30


def test_refuses_settings() -> None:
    with pytest.raises(ValueError, match="loss is 'dlr'; expected one of ce, margin"):
        Pgd(0.1, 0.1, loss="dlr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_restarts is 0; expected at least 1 restart"):
        Pgd(0.1, 0.1, num_restarts=0)
    with pytest.raises(ValueError, match="norm is 'l1'"):
        Pgd(0.1, 0.1, "l1")
