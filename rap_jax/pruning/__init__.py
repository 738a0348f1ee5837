"""ADMM pruning as optax transformations, and the sets that it projects on.

projections    Irregular, Column, Filter, BatchNorm filters: mask and project
layers         the leaves of a layer by name: a kernel, and the bias, scale and shift beside it
ownership      which leaves are removed with an output; ambiguous sparsity sets are refused
specs          layer-name patterns -> one sparsity set per weight; projections of whole trees
budgets        a sparsity for each layer, at a total: ERK, LAMP, normalised scores
admm           add_admm_penalty, AdmmState, residuals
masks          keep_masked, and zeros counted
"""
