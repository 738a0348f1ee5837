"""Files that a network is written to."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from rap_jax.config.checks import require, require_seed, setting

# Format -> suffix of its files.
SUFFIXES: Mapping[str, str] = MappingProxyType(
    {"stablehlo": ".jax", "onnx": ".onnx", "npz": ".npz", "safetensors": ".safetensors"}
)
FORMATS: tuple[str, ...] = tuple(SUFFIXES)


@dataclasses.dataclass(frozen=True)
class Int8Config:
    """How a file is quantised, and measured."""

    num_calibration_images: int = setting(512, "Training images that set the ranges of the activations.")
    num_images: int = setting(500, "Test images on which it is measured.")
    num_queries: int = setting(300, "Square's queries for each; 0 leaves it out.")
    seed: int = setting(0, "Seed of everything random.")

    def __post_init__(self) -> None:
        for name in ("num_calibration_images", "num_images"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more images")
        require(self.num_queries >= 0, "num_queries", self.num_queries, "0 or more queries")
        require_seed(self.seed)
