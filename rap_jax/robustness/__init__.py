"""How robust a finished network is, with all that is needed to believe the number: `launch.evaluate`.

network      what is evaluated: a run, a function, or a file (exported)
sample       on which images
attacks      PGD and AutoAttack, each with its file; transfer: images made on another network
predictor    what the network says of a whole sample: the last word on every adversarial image
worst_case   the worst of all attacks, for each example
plots, report
evaluate     all of it in turn
"""

from rap_jax.robustness.evaluate import evaluate_robustness

__all__ = ["evaluate_robustness"]
