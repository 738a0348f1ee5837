"""Signs that a robust accuracy cannot be trusted, in plain words: what was seen, what it means, what to do.

After Carlini et al., "On evaluating adversarial robustness", 2019, https://arxiv.org/abs/1902.06705, section 4, and the
flags of AutoAttack.

answers     what the network answers to clean images
gradients   whether its gradients lead anywhere
sweep       robust accuracy over the radius
ensemble    what the parts of AutoAttack give away
diagnose    all of it in turn, but for the last
"""

from rap_jax.diagnostics.answers import check_alone, check_images
from rap_jax.diagnostics.diagnose import MOST_IMAGES, Diagnosis, diagnose
from rap_jax.diagnostics.ensemble import check_left_out, check_square
from rap_jax.diagnostics.finding import Finding
from rap_jax.diagnostics.sweep import SweepPoint, epsilon_sweep

__all__ = [
    "MOST_IMAGES",
    "Diagnosis",
    "Finding",
    "SweepPoint",
    "check_alone",
    "check_images",
    "check_left_out",
    "check_square",
    "diagnose",
    "epsilon_sweep",
]
