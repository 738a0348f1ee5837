"""Attacks: a per-example loss goes in, adversarial images come out. No model, no flags, one attack per file.

norms   the two threat models (L-infinity, L2): random start, steepest step, projection
pgd     projected gradient descent with restarts

>>> import jax, jax.numpy as jnp
>>> from rap_jax.attacks import pgd
>>> images = jnp.full((2, 4, 4, 1), 0.5)
>>> loss_fn = lambda images: images.sum((1, 2, 3))  # any per-example loss of any JAX model
>>> attack = jax.jit(lambda key, images: pgd(key, loss_fn, images, epsilon=0.25, step_size=0.25, num_steps=2))
>>> float(attack(jax.random.key(0), images).max())
0.75
"""

from rap_jax.attacks.norms import NORMS, Norm, norm_of
from rap_jax.attacks.pgd import pgd, pgd_restarts

__all__ = ["NORMS", "Norm", "norm_of", "pgd", "pgd_restarts"]
