"""Neural networks that are small and robust: adversarial training and ADMM pruning at the same time, in JAX.

    attacks      pgd for any JAX model
    projections  irregular, filter and column sparsity sets
    admm         add_admm_penalty, an optax transformation
    masking      keep_masked, zeros that stay
    evaluate     robust accuracy with its interval
    pipeline     a whole run, from a config and a data set to results

Reference: Ye et al., "Adversarial Robustness vs Model Compression, or Both?", ICCV 2019,
https://arxiv.org/abs/1903.12561.
"""
