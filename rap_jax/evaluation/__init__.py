"""How robust a network is, and whether that can be trusted.

accuracy       natural and robust accuracy of a split, with their intervals
selection      accuracies that choose the epoch of a run, by attacks that misleading gradients do not stop
correctness    per-image correctness on clean and adversarial batches
auto_attack/   AutoAttack
certificates/  images that are proved to be robust
diagnostics    signs that a robust accuracy cannot be trusted
sweep          robust accuracy over the radius
certified      the certificates of an evaluation
suite          all attacks of an evaluation, each resumable
robustness     the whole evaluation: `launch.evaluate`
network        the network that is attacked, wherever it comes from
predictions    the images of an evaluation, and what a network says of them
report         tables and pictures of an evaluation
"""
