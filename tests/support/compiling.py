"""How the tests compile: quickly, since compiling is most of what they do, and each program once in all processes
and calls (`compiled`).

`optimised_test.py` has a run as users have it beside one of these.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from compiled import keep, kept_programs, lend

# Measured on 2 cores: the first takes half of the time of compiling, the second a tenth of the rest.
_FLAGS = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
# The first process asks XLA, those that it starts read the answer.
_KNOWN = "RAP_JAX_TESTS_KNOWN_XLA_FLAGS"


def known_flags(flags: tuple[str, ...] = _FLAGS) -> str:
    """Those that the XLA which is there knows: it ends a process that is given another one."""
    asks = "import jax; jax.devices()"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def knows(flag: str) -> bool:
        command = [sys.executable, "-c", asks]
        return not subprocess.run(command, env=environment | {"XLA_FLAGS": flag}, capture_output=True).returncode

    together = " ".join(flags)
    return together if knows(together) else " ".join(flag for flag in flags if knows(flag))


def xla_flags(num_devices: int) -> str:
    """XLA_FLAGS for a process with so many CPU devices."""
    if _KNOWN not in os.environ:
        os.environ[_KNOWN] = known_flags()
    return f"--xla_force_host_platform_device_count={num_devices} {os.environ[_KNOWN]}".strip()


def set_environment(num_devices: int) -> None:
    """For this process, before it imports jax, and for those that it starts."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(num_devices)}".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # Those of XLA are for GPUs, and their folder, another one in each call, would be part of a program's name.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the first process makes it, for itself and all that it starts
        folder = Path(tempfile.mkdtemp(prefix="rap_jax_compiling_"))
        folder.chmod(0o777)  # a test gives up its rights
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        lend(kept_programs(), folder)
        atexit.register(_end, folder)


def _end(folder: Path) -> None:
    keep(folder, kept_programs())
    shutil.rmtree(folder, ignore_errors=True)
