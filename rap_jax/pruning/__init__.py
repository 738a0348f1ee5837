"""ADMM pruning as optax transformations, and the sets that it projects on.

projections    Irregular, Column, Filter, BatchNorm filters: mask and project
layers         what belongs to a kernel: the bias, scale and shift beside it
ownership      what goes with an output, and which sets are refused because nobody can tell
specs          layer-name patterns -> one sparsity set per weight; projections of whole trees
admm           add_admm_penalty, AdmmState, residuals
masks          keep_masked, and zeros counted
"""
