"""Which processes compute as one."""

import dataclasses

from rap_jax.config.checks import require


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """How the processes of a run find each other; they may be on one host or on many.

    Attributes:
      distributed: they are found from what the cluster says: Slurm, Open MPI, GKE or Cloud TPU.
      coordinator_address: HOST:PORT of process 0, which all can reach, where no cluster says it; empty for one process.
      num_processes, process_id: how many there are, and which of them this one is, from 0; with an address only.
      initialization_timeout: seconds to wait until all have come.
    """

    distributed: bool = False
    coordinator_address: str = ""
    num_processes: int = 1
    process_id: int | None = None
    initialization_timeout: int = 300

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
