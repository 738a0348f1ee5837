"""Devices of a machine that is not there, to compile a program for, and what their chips can do.

    devices = target_devices("tpu:v5e:4x4")

The TPU compiler is in `libtpu`, which needs no TPU. Programs for such devices can be lowered and compiled, not run.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType

from rap_jax.config import require

_SYNTAX = re.compile(r"tpu:[a-z0-9]+:([1-9]\d*(?:x[1-9]\d*)+)")
# Ours is no part of a running job: it neither asks the cloud where it is, nor claims the chips of this host.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class Chip(NamedTuple):
    """Published peaks of one device, which is a chip."""

    flops: float  # multiplications and additions per second, of bfloat16
    memory: float  # bytes
    bandwidth: float  # bytes per second between memory and core
    ring: float  # bytes per second that it sends to its neighbour in a ring of devices; half of what a full torus has
    clock: float  # cycles per second
    wrap: int  # an axis of a multiple of so many chips is closed to a ring


# By `device_kind`. Sources: the page of each generation in https://cloud.google.com/tpu/docs. `ring` is a quarter of
# the published bandwidth of the chip in both directions over all links: two of its four links, one way. `clock` is the
# peak over the flops of a cycle. `wrap`: the axes of a torus, https://jax-ml.github.io/scaling-book/tpus.
CHIPS = MappingProxyType(
    {
        "TPU v5 lite": Chip(197e12, 16e9, 819e9, 100e9, 1.5e9, 16),
        "TPU v5": Chip(459e12, 95e9, 2765e9, 300e9, 1.75e9, 4),
        "TPU v6 lite": Chip(918e12, 32e9, 1638e9, 200e9, 1.75e9, 16),
    }
)


def target_devices(target: str) -> list[jax.Device]:
    """The devices of a target, such as `tpu:v5e:4x4`: generation and topology as libtpu names them.

    Raises:
      ValueError: it is written otherwise, libtpu does not know it, or libtpu is not installed.
    """
    found = _SYNTAX.fullmatch(target)
    require(found is not None, "target", target, "tpu:GENERATION:TOPOLOGY, such as tpu:v5e:4x4 or tpu:v5p:2x2x4")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"target is {target!r}, and its compiler is missing. Install it: pip install 'rap-jax[tpu_aot]'."
        )
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    assert found is not None
    lengths = [int(length) for length in found[1].split("x")]
    # A host has 2 x 2 chips or more, but for the slice of one chip.
    one_chip = {"chips_per_host_bounds": (1, 1, 1)} if set(lengths) == {1} else {}
    try:
        name = target.removeprefix("tpu:")
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=name, **one_chip).devices)
        jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        return devices
    except (jax.errors.JaxRuntimeError, AssertionError) as error:  # JAX has no mesh of half chips, as of TPU v4
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"target is {target!r}, which libtpu or JAX refuses ({reason}); expected such as tpu:v5e:4x4."
        ) from error


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """For programs of such devices: JAX writes them into its persistent cache, and cannot read them back."""
    before = jax.config.values["jax_enable_compilation_cache"]
    try:
        _enable_cache(False)
        yield
    finally:
        _enable_cache(before)


def _enable_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # which asks for the setting once, at the first program
