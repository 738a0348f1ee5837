"""Time and memory of a training step on a chip that is not there: estimated from the compiled program, never measured.

Two estimates stand side by side:

    cost model   the cycles that XLA's TPU compiler expects of each operation, loops counted in full
    roofline     the products of the network at the chip's peak, or the bytes at its bandwidth, whichever takes longer
                 (Williams et al., 2009, https://doi.org/10.1145/1498765.1498785)

Neither has the collectives. Both add them as a ring of the devices that take part (`Chip.ring`; half of it where these
lie in a line, whose ends have one link), with 1 microsecond for each hop from device to device, and nothing hidden
behind computation. Both are of a step without a dual step.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rap_jax._runtime.hlo import Collective, read_program
from rap_jax._runtime.topology import CHIPS, Chip
from rap_jax.compaction.multiply_adds import count_multiply_adds
from rap_jax.config import AttackConfig, Stage, TrainConfig
from rap_jax.models import Model
from rap_jax.models.model import Weights
from rap_jax.training.state import has_teacher

HOP_SECONDS = 1e-6


class StepEstimate(NamedTuple):
    """A training step on one device."""

    memory: int  # bytes of state, data, program and its code
    sent: float  # bytes
    collectives: tuple[Collective, ...]
    flops: float  # of the passes through the network that the algorithm asks for
    # Seconds; None for a chip that `CHIPS` does not know, and where the compiler gives no cycles.
    cost_model: float | None
    roofline: float | None
    peak_share: float | None  # of the chip's flops, by the cost model


def estimate_step(compiled: jax.stages.Compiled, mesh: Mesh, flops: float) -> StepEstimate:
    """Reads a compiled step.

    Args:
      flops: of one device, from `step_flops`.

    Raises:
      ValueError: the program cannot be read, see `read_program`.
    """
    program, chip = read_program(compiled.as_text() or ""), CHIPS.get(mesh.devices.flat[0].device_kind)
    sent = sum(one.number * _sent(one, len(one.group) or mesh.size) for one in program.collectives)
    cost_model = roofline = None
    if chip is not None:
        waiting = sum(_seconds(one, chip, mesh) for one in program.collectives)
        roofline = max(flops / chip.flops, program.num_bytes / chip.bandwidth) + waiting
        cost_model = program.cycles / chip.clock + waiting if program.cycles else None
    share = None if chip is None or cost_model is None else flops / cost_model / chip.flops
    return StepEstimate(_memory(compiled), sent, program.collectives, flops, cost_model, roofline, share)


def step_flops(
    model: Model, weights: Weights, config: TrainConfig, num_images: int, stage: Stage = "pretrain"
) -> float:
    """Multiplications and additions of a step on so many images: those of convolutions and dense layers.

    Args:
      weights: arrays or their shapes.
    """
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), weights)
    multiply_adds = count_multiply_adds(model.logits, zeros, (1, *model.input_shape)).all
    return 2.0 * multiply_adds * num_images * num_step_passes(config, stage)


def num_step_passes(config: TrainConfig, stage: Stage) -> int:
    """Passes of a training step: those of the attack, then forward, backward for images and backward for weights.

    With a perturbation of the weights the last three are taken twice, and with a teacher for clean images too, whose
    own pass is another one.
    """
    attack, distills = config.attack if config.attacks_first else None, has_teacher(config, stage)
    return num_passes(attack) + 3 * (1 + distills) * (2 if config.awp_gamma > 0 else 1) + distills


def num_passes(attack: AttackConfig | None) -> int:
    """Passes through the network, of the cost of a forward pass, that an attack takes; a backward pass is one."""
    if attack is None:
        return 0
    choose = attack.num_restarts if attack.num_restarts > 1 else 0
    return 2 * attack.num_steps * attack.num_restarts + choose


def _memory(compiled: jax.stages.Compiled) -> int:
    found: Any = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return int(found.argument_size_in_bytes + found.temp_size_in_bytes + found.generated_code_size_in_bytes + results)


def _sent(collective: Collective, num_devices: int) -> float:
    """Bytes that a device sends in a ring: everything twice around to sum it, once to gather it."""
    around = (num_devices - 1) / num_devices
    if collective.kind == "all-reduce":
        return 2 * around * collective.num_bytes
    if collective.kind == "reduce-scatter":
        return (num_devices - 1) * collective.num_bytes
    return around * collective.num_bytes


def _seconds(collective: Collective, chip: Chip, mesh: Mesh) -> float:
    devices = [mesh.devices.flat[number] for number in collective.group] or list(mesh.devices.flat)
    coordinates = [getattr(device, "coords", (device.id,)) for device in devices]
    # A sum goes there and back.
    hops = num_hops(coordinates, chip.wrap) * (2 if collective.kind == "all-reduce" else 1)
    bandwidth = chip.ring / 2 if _is_line(coordinates, chip.wrap) else chip.ring
    return collective.number * (_sent(collective, len(devices)) / bandwidth + hops * HOP_SECONDS)


def _lengths(coordinates: Sequence[Sequence[int]]) -> list[int]:
    return [int(length) + 1 for length in np.ptp(np.array(coordinates), 0)]


def _is_line(coordinates: Sequence[Sequence[int]], wrap: int) -> bool:
    """Whether they lie along one axis that is not closed to a ring."""
    longer = [length for length in _lengths(coordinates) if length > 1]
    return len(longer) == 1 and longer[0] > 2 and longer[0] % wrap != 0


def num_hops(coordinates: Sequence[Sequence[int]], wrap: int) -> int:
    """From a chip to the one that is farthest from it: the way of what all get, and of a sum before it goes back.

    Args:
      coordinates: of each device.
      wrap: see `Chip`.
    """
    return sum(length // 2 if length % wrap == 0 else length - 1 for length in _lengths(coordinates))


def count_kinds(collectives: tuple[Collective, ...]) -> dict[str, int]:
    """Kind of collective -> how often it runs in a step."""
    kinds = dict[str, int]()
    for one in collectives:
        kinds[one.kind] = kinds.get(one.kind, 0) + one.number
    return kinds
