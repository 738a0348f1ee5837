"""PGD in pieces takes the same way as `pgd`, and stops at the first image that is misclassified."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smooth_net import examples, logits_fn

from rap_jax.attacks import ThreatModel, pgd
from rap_jax.attacks.losses import cross_entropy, margin
from rap_jax.attacks.stepwise import run_attack
from rap_jax.attacks.stepwise_pgd import Pgd

IMAGES, LABELS = map(jnp.asarray, examples(30, wrong=2))
THREAT_MODEL = ThreatModel("linf", 0.04)
KEYS = jax.random.split(jax.random.key(0), 30)


@pytest.mark.parametrize("norm, epsilon", [("linf", 0.04), ("l2", 0.4)])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_it_goes_the_way_of_pgd(norm: str, epsilon: float, loss: str) -> None:
    threat_model = ThreatModel(norm, epsilon)
    attack = Pgd(threat_model, epsilon / 4, loss, num_steps=8)  # type: ignore[arg-type]
    state = attack.start(logits_fn, KEYS, IMAGES, LABELS, jnp.zeros(30, jnp.int32))
    state = attack.advance(logits_fn, attack.advance(logits_fn, state, 3), 5)
    loss_fn = {"ce": cross_entropy, "margin": margin}[loss]
    settings = {"step_size": epsilon / 4, "num_steps": 8, "loss": loss_fn}
    end = pgd(logits_fn, IMAGES, LABELS, threat_model=threat_model, key=KEYS, **settings)
    np.testing.assert_allclose(state.current, end.adversarial, atol=1e-5)
    assert np.asarray(state.broken)[np.asarray(end.broken)].all()
    np.testing.assert_array_equal(logits_fn(state.adversarial).argmax(-1) != LABELS, state.broken)
    assert threat_model.contains(state.adversarial, IMAGES).all()


def test_more_starts_break_more() -> None:
    attack = lambda restarts: Pgd(THREAT_MODEL, 0.01, num_steps=5, num_restarts=restarts)
    run = lambda restarts: run_attack(attack(restarts), logits_fn, IMAGES, LABELS, key=KEYS)
    one, three = np.asarray(run(1).broken), np.asarray(run(3).broken)
    assert three[one].all() and 2 < one.sum() <= three.sum() < 30


def test_refuses_settings() -> None:
    with pytest.raises(ValueError, match="loss is 'dlr'; expected one of ce, margin"):
        Pgd(THREAT_MODEL, 0.1, loss="dlr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_restarts is 0; expected at least 1 restart"):
        Pgd(THREAT_MODEL, 0.1, num_restarts=0)
    with pytest.raises(ValueError, match="threat_model is 0.1; expected one, such as ThreatModel"):
        Pgd(0.1, 0.1)  # type: ignore[arg-type]
