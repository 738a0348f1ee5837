"""How a run computes: devices, processes, implementation."""

import dataclasses
from typing import Literal

from rap_jax.config.checks import require, require_choices, setting


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a run computes; changes its numbers by rounding alone.

    It is therefore no part of what a run is (`RunConfig`): a run may go on elsewhere, in another way.
    """

    # 0 chooses by cores and batch, see `rap_jax._runtime.devices`.
    num_cpu_devices: int = setting(0, "Devices that a CPU is taken for, each with its share of the batch; 0 chooses, "
        "up to one per core.")  # fmt: skip
    num_model_shards: int = setting(1, "Devices that share weights, z, u and the state of the optimizer, each with a "
        "piece of the large arrays (FSDP): a divisor of all devices.")  # fmt: skip
    stream_data: bool = setting(False, "Training images stay on disk and are read ahead by Grain, by each process "
        "those of its devices; for prepared data that memory cannot hold. The batches are the same.")  # fmt: skip
    implementation: Literal["auto", "cpu", "xla"] = setting("auto", "How convolutions and pooling are computed: in a "
        "form for the CPU, by XLA's own operations, or auto, by the device. Changes results by rounding alone."
    )  # fmt: skip

    def __post_init__(self) -> None:
        require(self.num_cpu_devices >= 0, "num_cpu_devices", self.num_cpu_devices, "1 or more devices, or 0 to choose")
        require(self.num_model_shards >= 1, "num_model_shards", self.num_model_shards, "1 or more devices")
        require_choices(self)


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """How the processes of a run find each other; they may be on one host or on many."""

    distributed: bool = setting(False, "This is one of several processes that compute as one, which Slurm, Open MPI, "
        "GKE or Cloud TPU has started: they are found by themselves.")  # fmt: skip
    coordinator_address: str = setting("", "Where there is no such cluster: HOST:PORT of process 0, the same for all; "
        "empty for one process.")  # fmt: skip
    num_processes: int = setting(1, "How many there are, with --coordinator_address.")
    process_id: int | None = setting(None, "Which of them this one is, from 0, with --coordinator_address.")
    initialization_timeout: int = setting(300, "Seconds to wait until all of them have come.")

    def __post_init__(self) -> None:
        address, number, total = self.coordinator_address, self.process_id, self.num_processes
        require(not (self.distributed and address), "coordinator_address", address, "none with --distributed")
        host, _, port = address.rpartition(":")
        well_formed = not address or (host != "" and port.isdigit() and 0 < int(port) < 2**16)
        require(well_formed, "coordinator_address", address, "HOST:PORT, such as 10.0.0.1:8476")
        least = 2 if address else 1
        expected = "2 or more processes" if address else "1 without --coordinator_address"
        require(total >= least and (bool(address) or total == 1), "num_processes", total, expected)
        if address:
            in_range = number is not None and 0 <= number < total
            require(in_range, "process_id", number, f"a number from 0 to {total - 1}, for each process its own")
        else:
            require(number is None, "process_id", number, "none without --coordinator_address")
        seconds = self.initialization_timeout
        require(seconds > 0, "initialization_timeout", seconds, "1 second or more")

    @property
    def several(self) -> bool:
        """Whether this process is one of several."""
        return self.distributed or bool(self.coordinator_address)
