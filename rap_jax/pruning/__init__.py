"""Pruning as optax transformations: ADMM and its rivals, and the sparsity sets that they project on.

projections    Irregular, Column, Filter, BatchNorm filters: mask and project
layers         the leaves of a layer by name: a kernel, and the bias, scale and shift beside it
ownership      which leaves are removed with an output; ambiguous sparsity sets are refused
specs          layer-name patterns -> one sparsity set per weight; projections of whole trees
budgets        a sparsity for each layer, at a total: ERK, LAMP, normalised scores
admm           add_admm_penalty, AdmmState, residuals
masks          keep_masked, and zeros counted
scores         masks by scores of one's own, and random ones
latent         training through variables behind the weights, which the next two are
learned_scores learn_scores: HYDRA, HARP
factors        factorise: TwinRep
regrowth       drop_and_regrow: FlyingBird
"""
