"""Attacks on any JAX model: logits go in, adversarial images come out. All have one signature and one result.

    attack(logits_fn, images, labels, *, threat_model, key, ...) -> AttackResult(adversarial, broken)

pgd, fgsm, momentum_pgd     raise a loss: cross-entropy, or `loss=margin`, the C&W loss
apgd, apgd_targeted         Auto-PGD, which chooses its step size by itself
pma                         the probability margin attack
fab, fab_targeted, cw_l2    look for the nearest adversarial image
square                      without gradients

`pgd_restarts` raises any per-example loss of the images alone: `loss_fn(images) -> [N]`. `leaky_backward` gives an
attack a network whose gradient passes ReLUs that are off. The modules:

norms                            ThreatModel, the L-infinity and the L2 norm
losses                           per-example losses
backward                         functions with another backward pass
checks                           what a caller may get wrong
pgd, apgd, fab, square, cw       the attacks
stepwise                         attacks in pieces, as AutoAttack runs them; AttackResult
stepwise_pgd, pma                PGD and PMA as such
hyperplane, square_candidates    what FAB and Square are made of

>>> import jax, jax.numpy as jnp
>>> from rap_jax.attacks import ThreatModel, pgd
>>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([0, 1])
>>> logits_fn = lambda images: images.reshape(len(images), -1)[:, :2]  # of any JAX model
>>> settings = {"threat_model": ThreatModel("linf", 0.25), "step_size": 0.25, "num_steps": 2}
>>> attack = jax.jit(lambda key, images: pgd(logits_fn, images, labels, key=key, **settings))
>>> attack(jax.random.key(0), images).broken.tolist()
[True, True]
"""

from rap_jax.attacks.apgd import apgd, apgd_targeted
from rap_jax.attacks.backward import leaky_backward
from rap_jax.attacks.cw import cw_l2
from rap_jax.attacks.fab import fab, fab_targeted
from rap_jax.attacks.norms import ThreatModel
from rap_jax.attacks.pgd import fgsm, momentum_pgd, pgd, pgd_restarts
from rap_jax.attacks.pma import pma
from rap_jax.attacks.square import square
from rap_jax.attacks.stepwise import AttackResult

__all__ = [
    "AttackResult",
    "ThreatModel",
    "apgd",
    "apgd_targeted",
    "cw_l2",
    "fab",
    "fab_targeted",
    "fgsm",
    "leaky_backward",
    "momentum_pgd",
    "pgd",
    "pgd_restarts",
    "pma",
    "square",
]
