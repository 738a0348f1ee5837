"""AutoAttack for any JAX model: `auto_attack(logits_fn, images, labels, threat_model=..., key=...)`.

inputs     what a caller may get wrong
versions   which attacks, in which order
programs   their compiled programs
slots      a row of examples that is kept full
record     what is known of each example, on disk
ensemble   all of it in turn
result     what comes out
"""

from rap_jax.evaluation.auto_attack.ensemble import auto_attack
from rap_jax.evaluation.auto_attack.result import AutoAttackResult, ComponentResult
from rap_jax.evaluation.auto_attack.versions import VERSIONS, Component, Version

__all__ = ["VERSIONS", "AutoAttackResult", "Component", "ComponentResult", "Version", "auto_attack"]
