"""Which network."""

import dataclasses

from rap_jax.config.checks import require


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A network of the paper's Table 1 by name, its width w and how its weights start."""

    name: str = "lenet_mnist"
    width: int = 4
    initializer: str = "default"

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "a whole number of 1 or more (the paper uses 1, 2, 4, 8, 16)")
