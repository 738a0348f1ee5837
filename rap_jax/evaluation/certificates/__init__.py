"""Proofs of robustness: bounds of a network over all images of a threat model.

certify(logits_fn, images, labels, threat_model=ThreatModel("linf", 0.1))   certified, broken, or open
margin_bounds(...)                                                          the bounds, for a loss
"""

from rap_jax.evaluation.certificates.bounds import Method
from rap_jax.evaluation.certificates.certify import METHODS, Certificates, certify, check_unbroken, margin_bounds
from rap_jax.evaluation.certificates.graph import graph_of

__all__ = ["METHODS", "Certificates", "Method", "certify", "check_unbroken", "graph_of", "margin_bounds"]
