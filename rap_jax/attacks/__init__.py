"""Attacks: a per-example loss or logits go in, adversarial images come out. One attack per file, for any JAX model.

    pgd, fgsm, momentum_pgd         of a per-example loss of the images: `loss_fn(images) -> [N]`
                                    of the C&W loss (the paper's Table C1) for `lambda x: margin(logits_fn(x), labels)`
    apgd, apgd_targeted             of logits: `logits_fn(images) -> [N, K]`; as all below
    fab, fab_targeted, cw_l2        look for the nearest adversarial image
    square                          without gradients

norms       the two threat models (L-infinity, L2): random start, steepest step, projection
stepwise    attacks in pieces, as AutoAttack runs them, and `run_attack` for a whole one
losses      per-example losses
hyperplane, square_candidates    what FAB and Square are made of

>>> import jax, jax.numpy as jnp
>>> from rap_jax.attacks import pgd
>>> images = jnp.full((2, 4, 4, 1), 0.5)
>>> loss_fn = lambda images: images.sum((1, 2, 3))  # any per-example loss of any JAX model
>>> attack = jax.jit(lambda key, images: pgd(key, loss_fn, images, epsilon=0.25, step_size=0.25, num_steps=2))
>>> float(attack(jax.random.key(0), images).max())
0.75
"""

from rap_jax.attacks.apgd import Apgd, apgd, apgd_targeted
from rap_jax.attacks.cw import Nearest, cw_l2
from rap_jax.attacks.fab import Fab, fab, fab_targeted
from rap_jax.attacks.norms import NORMS, Norm, is_inside, norm_of
from rap_jax.attacks.pgd import fgsm, momentum_pgd, pgd, pgd_restarts
from rap_jax.attacks.square import Square, square
from rap_jax.attacks.stepwise import Outcome, run_attack

__all__ = [
    "NORMS",
    "Apgd",
    "Fab",
    "Nearest",
    "Norm",
    "Outcome",
    "Square",
    "apgd",
    "apgd_targeted",
    "cw_l2",
    "fab",
    "fab_targeted",
    "fgsm",
    "is_inside",
    "momentum_pgd",
    "norm_of",
    "pgd",
    "pgd_restarts",
    "run_attack",
    "square",
]
