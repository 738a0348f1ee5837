"""Which accelerator JAX finds, asked in a process of its own: the memory of the card stays free for the rows.

python -m benchmarks.accelerators.device
"""

import shutil
import subprocess

import jax

from benchmarks.accelerators.process import serve_object
from benchmarks.worker import Answer


class Device:
    """The first device of JAX."""

    def describe(self) -> Answer:
        """Its kind, platform and driver."""
        device = jax.devices()[0]
        return {"device": device.device_kind, "platform": device.platform, "driver": _driver()}


def _driver() -> str:
    """Version of the driver of an NVIDIA card; empty where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip().partition("\n")[0]


if __name__ == "__main__":
    serve_object(Device, "describe")
