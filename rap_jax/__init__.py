"""Neural networks that are small and robust: adversarial training and ADMM pruning at the same time, in JAX.

    pgd, apgd, fab, square, cw_l2       attacks on any JAX model, inside a ThreatModel
    auto_attack, diagnose               robust accuracy, and signs that it cannot be trusted
    certify                             images that are proved to be robust
    add_admm_penalty, keep_masked       ADMM pruning and fixed zeros, as optax transformations
    learn_scores, factorise             other methods of pruning, likewise; and drop_and_regrow
    Filter, Column, Irregular           sparsity sets; project_tree and masks_of apply them
    layer_budgets                       a sparsity for each layer, at a total: ERK, LAMP, normalised scores
    compact, fold_batch_norm            the same network in smaller arrays
    fast_on_cpu                         the same network in forms that a CPU computes fast, for any JAX model
    create_model, load_network          the paper's networks, and those of finished runs

Names are imported when they are first used: `import rap_jax as rap; rap.pgd(...)`.

Reference: Ye et al., "Adversarial Robustness vs Model Compression, or Both?", ICCV 2019,
https://arxiv.org/abs/1903.12561.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rap_jax.attacks import ThreatModel, apgd, cw_l2, fab, pgd, square
    from rap_jax.compaction import compact, fold_batch_norm
    from rap_jax.evaluation.auto_attack import auto_attack
    from rap_jax.evaluation.certificates import certify
    from rap_jax.evaluation.diagnostics import diagnose
    from rap_jax.models import create_model
    from rap_jax.models.cpu_forms import fast_on_cpu
    from rap_jax.pruning.admm import add_admm_penalty
    from rap_jax.pruning.budgets import layer_budgets
    from rap_jax.pruning.factors import factorise
    from rap_jax.pruning.learned_scores import learn_scores
    from rap_jax.pruning.masks import keep_masked
    from rap_jax.pruning.projections import Column, Filter, Irregular
    from rap_jax.pruning.regrowth import drop_and_regrow
    from rap_jax.pruning.specs import masks_of, project_tree
    from rap_jax.runs.network import load_network

__version__ = "0.1.0"
__all__ = [
    "Column",
    "Filter",
    "Irregular",
    "ThreatModel",
    "__version__",
    "add_admm_penalty",
    "apgd",
    "auto_attack",
    "certify",
    "compact",
    "create_model",
    "cw_l2",
    "diagnose",
    "drop_and_regrow",
    "fab",
    "factorise",
    "fast_on_cpu",
    "fold_batch_norm",
    "keep_masked",
    "layer_budgets",
    "learn_scores",
    "load_network",
    "masks_of",
    "pgd",
    "project_tree",
    "square",
]
# Module -> the names that come from it.
_NAMES = {
    "rap_jax.pruning.admm": ("add_admm_penalty",),
    "rap_jax.pruning.budgets": ("layer_budgets",),
    "rap_jax.attacks": ("ThreatModel", "apgd", "cw_l2", "fab", "pgd", "square"),
    "rap_jax.evaluation.auto_attack": ("auto_attack",),
    "rap_jax.evaluation.certificates": ("certify",),
    "rap_jax.compaction": ("compact", "fold_batch_norm"),
    "rap_jax.evaluation.diagnostics": ("diagnose",),
    "rap_jax.pruning.masks": ("keep_masked",),
    "rap_jax.pruning.factors": ("factorise",),
    "rap_jax.pruning.learned_scores": ("learn_scores",),
    "rap_jax.pruning.regrowth": ("drop_and_regrow",),
    "rap_jax.models": ("create_model",),
    "rap_jax.models.cpu_forms": ("fast_on_cpu",),
    "rap_jax.pruning.projections": ("Column", "Filter", "Irregular"),
    "rap_jax.runs.network": ("load_network",),
    "rap_jax.pruning.specs": ("masks_of", "project_tree"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
_PACKAGES = (
    "attacks",
    "compaction",
    "config",
    "data",
    "evaluation",
    "export",
    "models",
    "pruning",
    "reproduction",
    "runs",
    "training",
)


if not TYPE_CHECKING:  # a type checker shall refuse other names

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            found = getattr(importlib.import_module(_MODULES[name]), name)
        elif name in _PACKAGES:
            found = importlib.import_module(f"rap_jax.{name}")
        else:
            raise AttributeError(f"module 'rap_jax' has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES})
