"""How convolutions are computed: in a form for the CPU, or by XLA's own operations."""

from typing import Literal

import jax

from rap_jax.config import require

Implementation = Literal["auto", "cpu", "xla"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("auto", "cpu", "xla")


def use_cpu_form(implementation: Implementation) -> bool:
    """Whether a layer takes its form for the CPU; `auto` asks for JAX's default backend, when the layer is traced.

    Raises:
        ValueError: for an unknown implementation; the message lists the known ones.
    """
    require(implementation in IMPLEMENTATIONS, "implementation", implementation, f"one of {', '.join(IMPLEMENTATIONS)}")
    return implementation == "cpu" or (implementation == "auto" and jax.default_backend() == "cpu")
