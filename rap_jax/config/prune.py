"""Which weights go, and how ADMM pulls."""

import dataclasses
from typing import Literal

from rap_jax.config.checks import require, require_at_least, require_choice, require_positive

STRUCTURES: tuple[str, ...] = ("irregular", "filter", "column", "bn_filter")


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """Which weights go, and how hard ADMM pulls.

    `sparsity` holds (pattern, ratio) pairs: a pattern is a shell-style wildcard over layer names such as `conv1`,
    the first that matches a layer decides, and layers that none matches stay dense. Without pairs nothing is pruned.
    A `budget` of `global` lets the layers compete: one ratio counts over all layers that a pattern matches.
    `dual_interval` counts epochs or steps, see its unit. `reset_learning_rate` runs the schedule of the ADMM stage anew
    after each dual step. `dual_keeps_graph` is the authors' growing penalty, see `rap_jax.pruning.admm`.
    """

    structure: Literal["irregular", "filter", "column", "bn_filter"] = "filter"
    sparsity: tuple[tuple[str, float], ...] = (("*", 0.5),)
    budget: Literal["layer", "global"] = "layer"
    rho: float = 0.01
    rho_rule: Literal["uniform", "gradient"] = "gradient"
    rho_growth: float = 1.3
    rescale_dual: bool = True
    dual_keeps_graph: bool = False
    reset_learning_rate: bool = False
    dual_interval: float = 0.5
    dual_interval_unit: Literal["epochs", "steps"] = "epochs"

    def __post_init__(self) -> None:
        require_choice("structure", self.structure, STRUCTURES)
        require_choice("rho_rule", self.rho_rule, ("uniform", "gradient"))
        require_choice("budget", self.budget, ("layer", "global"))
        patterns = [pattern for pattern, _ in self.sparsity]
        hint = "each pattern once: the first that matches a layer decides"
        require(len(set(patterns)) == len(patterns), "sparsity", self.sparsity, hint)
        for pattern, ratio in self.sparsity:
            require(bool(pattern), "sparsity", self.sparsity, "a layer pattern before each ratio, such as conv1:0.5")
            require(0 <= ratio < 1, f"sparsity of {pattern}", ratio, "a share of zeros in [0, 1)")
        if self.budget == "global":
            ratios = {ratio for _, ratio in self.sparsity if ratio > 0}
            require(len(ratios) == 1, "sparsity", self.sparsity, "one ratio above 0 for all layers under budget global")
        require_positive("rho", self.rho)
        require_at_least("rho_growth", self.rho_growth, 1, " per dual step")
        require_positive("dual_interval", self.dual_interval)
        require_choice("dual_interval_unit", self.dual_interval_unit, ("epochs", "steps"))
