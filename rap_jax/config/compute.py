"""How a run computes."""

import dataclasses
from typing import Literal

from rap_jax.config.checks import require, require_choice


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a run computes; changes its numbers by rounding alone.

    It is therefore no part of what a run is (`RunConfig`): a run may go on elsewhere, in another way.

    Attributes:
      num_cpu_devices: devices that JAX shall see on a CPU; 0 chooses by cores and batch, see
        `rap_jax._runtime.devices`.
      num_model_shards: devices that share the state, each with a piece of its large arrays; a divisor of all devices.
      stream_data: training images stay on disk and are read when a batch needs them.
      implementation: how convolutions and pooling are computed; `auto` takes the form for the CPU on a CPU.
    """

    num_cpu_devices: int = 0
    num_model_shards: int = 1
    stream_data: bool = False
    implementation: Literal["auto", "cpu", "xla"] = "auto"

    def __post_init__(self) -> None:
        require(self.num_cpu_devices >= 0, "num_cpu_devices", self.num_cpu_devices, "1 or more devices, or 0 to choose")
        require(self.num_model_shards >= 1, "num_model_shards", self.num_model_shards, "1 or more devices")
        require_choice("implementation", self.implementation, ("auto", "cpu", "xla"))
