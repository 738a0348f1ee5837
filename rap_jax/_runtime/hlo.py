"""What a compiled program does in one call, read from its HLO text: cycles, bytes and collectives, with all loops.

    found = read_program(jax.jit(step).lower(...).compile().as_text())

XLA's own `cost_analysis` counts the body of a loop once, and the attack of a training step is a loop. The text says how
often a loop runs, and for TPUs how many cycles the compiler expects of each operation (`estimated_cycles`).

Counted so: (1) of a branch, the path of fewer cycles: an ADMM step without a dual step. (2) Memory: operands and
results of each operation outside of fusions that do not lie in the memory of the core (`S(1)`); of an operand that is
only gathered from or sliced, what is taken. (3) The cycles of a collective are not in the text.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"  (ROOT )?%?([\w.\-]+) = (.*)")
_ARRAY = re.compile(r"(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
# Operations that neither compute nor move anything.
_FREE = frozenset("parameter constant tuple get-tuple-element bitcast while conditional call".split())


class Collective(NamedTuple):
    """An operation in which devices wait for each other."""

    kind: str  # one of `KINDS`
    number: int  # how often it runs
    num_bytes: int  # that a device gets each time
    in_loop: bool
    group: tuple[int, ...] = ()  # devices that take part together, by their place in the mesh; none: all of them


class Program(NamedTuple):
    """What one device does in one call."""

    cycles: int  # that the compiler expects; 0 where it says nothing
    num_bytes: int  # between memory and core
    collectives: tuple[Collective, ...]


class _Instruction(NamedTuple):
    name: str
    operation: str
    result: str  # its type
    rest: str  # operands and attributes
    is_root: bool


_Computation = dict[str, _Instruction]


def read_program(text: str) -> Program:
    """Reads the text of a compiled program (`as_text()`).

    Raises:
      ValueError: it has no entry, or a loop whose number of rounds is not in it.
    """
    computations, entry = _parse(text)
    if entry is None:
        raise ValueError(f"text is {text[:80]!r}; expected that of a compiled program, with an ENTRY.")
    return _total(computations, entry, times=1, in_loop=False)


def _parse(text: str) -> tuple[dict[str, _Computation], str | None]:
    computations, entry, current = dict[str, _Computation](), None, None
    for line in text.splitlines():
        if found := _COMPUTATION.fullmatch(line):
            current = computations.setdefault(found[2], {})
            entry = found[2] if found[1] else entry
        elif current is not None and (found := _INSTRUCTION.fullmatch(line)):
            result, rest = _split_type(found[3])
            operation = rest.split("(", 1)[0]
            current[found[2]] = _Instruction(found[2], operation, result, rest, found[1] is not None)
    return computations, entry


def _split_type(line: str) -> tuple[str, str]:
    """The type of a result, which may be a tuple, and what follows it."""
    depth = 0
    for place, character in enumerate(line):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == " ":
            return line[:place], line[place + 1 :]
    return line, ""


def _total(computations: dict[str, _Computation], name: str, *, times: int, in_loop: bool) -> Program:
    """Of a computation that runs so many times, with those that it calls."""
    computation = computations[name]
    cycles, num_bytes, collectives = 0, 0, list[Collective]()
    for instruction in computation.values():
        cycles += times * _cycles(instruction)
        num_bytes += times * _moved(computations, computation, instruction)
        if (found := _collective(computations, instruction)) is not None:
            kind, group = found
            collectives.append(Collective(kind, times, _size(_last_array(instruction)), in_loop, group))
        for called in _called(computations, instruction, times, in_loop):
            cycles, num_bytes = cycles + called.cycles, num_bytes + called.num_bytes
            collectives += called.collectives
    return Program(cycles, num_bytes, tuple(collectives))


def _called(
    computations: dict[str, _Computation], instruction: _Instruction, times: int, in_loop: bool
) -> Iterator[Program]:
    if instruction.operation == "while":
        rounds = _rounds(instruction, computations[_attribute(instruction, "condition")])
        yield _total(computations, _attribute(instruction, "body"), times=times * rounds, in_loop=True)
    elif instruction.operation == "conditional":
        paths = [_total(computations, name, times=times, in_loop=in_loop) for name in _branches(instruction)]
        yield min(paths, key=lambda path: path.cycles)
    elif instruction.operation == "call":
        yield _total(computations, _attribute(instruction, "to_apply"), times=times, in_loop=in_loop)


def _attribute(instruction: _Instruction, name: str) -> str:
    found = re.search(rf"\b{name}=%?([\w.\-]+)", instruction.rest)
    if found is None:
        raise ValueError(f"{instruction.name} of a compiled program has no {name}: {instruction.rest[:200]}")
    return found[1]


def _branches(instruction: _Instruction) -> Sequence[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    if found is None:
        return [_attribute(instruction, f"{name}_computation") for name in ("true", "false")]
    return [name.strip().lstrip("%") for name in found[1].split(",")]


def _rounds(loop: _Instruction, condition: _Computation) -> int:
    """How often a loop runs: as XLA noted it, or the number that its counter is compared with."""
    if found := re.search(r'known_trip_count"?:\{"n":"(\d+)"\}', loop.rest):
        return int(found[1])
    numbers = [re.match(r"constant\((\d+)\)", line.rest) for line in condition.values()]
    limits = {int(number[1]) for number in numbers if number}
    if len(limits) != 1:
        raise ValueError(
            f"{loop.name} of a compiled program runs until {sorted(limits)}; expected one number of rounds."
        )
    return limits.pop()


def _cycles(instruction: _Instruction) -> int:
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
    return int(found[1]) if found else 0


def _moved(computations: dict[str, _Computation], computation: _Computation, instruction: _Instruction) -> int:
    """Bytes that an operation reads from memory and writes there."""
    if instruction.operation in _FREE or instruction.operation.endswith("-done"):
        return 0
    operands = _operands(computation, instruction)
    if instruction.operation == "copy-start":
        # Its result names the source as well.
        return sum(_in_memory(operand.result) for operand in operands)
    read = sum(_read(computations, instruction, number, operand) for number, operand in enumerate(operands))
    return read + _in_memory(instruction.result)


def _operands(computation: _Computation, instruction: _Instruction) -> list[_Instruction]:
    inside = instruction.rest.split("(", 1)[-1].split(")", 1)[0]
    names = [name.strip().lstrip("%") for name in inside.split(",")]
    return [computation[name] for name in names if name in computation]


def _read(computations: dict[str, _Computation], instruction: _Instruction, number: int, operand: _Instruction) -> int:
    """Bytes of an operand in memory that the operation looks at."""
    everything = _in_memory(operand.result)
    if instruction.operation == "fusion":
        inner = computations[_attribute(instruction, "calls")]
        parameters = [line for line in inner.values() if line.rest.startswith(f"parameter({number})")]
        users = [line for line in inner.values() if parameters and parameters[0] in _operands(inner, line)]
    else:
        users = [instruction] if number == 0 else []
    if users and all(line.operation in ("gather", "dynamic-slice") for line in users):
        return min(everything, sum(_size(line.result) for line in users))
    return everything


def _last_array(instruction: _Instruction) -> str:
    """The type of what a collective gives: of its asynchronous form, whose tuple names the operand first, the last."""
    arrays = [found[0] for found in _ARRAY.finditer(instruction.result)]
    return arrays[-1] if instruction.operation.endswith("-start") and arrays else instruction.result


def _collective(computations: dict[str, _Computation], instruction: _Instruction) -> tuple[str, tuple[int, ...]] | None:
    """Kind and group; a TPU has a reduce-scatter as a fusion of a sum and a slice of it."""
    kind = instruction.operation.removesuffix("-start")
    if kind in KINDS:
        return kind, _group(instruction)
    inside = computations.get(_attribute(instruction, "calls"), {}) if kind == "fusion" else {}
    sums = [line for line in inside.values() if line.operation == "all-reduce"]
    return ("reduce-scatter", _group(sums[0])) if sums else None


def _group(collective: _Instruction) -> tuple[int, ...]:
    """The first of its groups of devices, in one of the three forms in which XLA writes them:

    replica_groups={{0,1},{2,3}}
    replica_groups=[2,4]<=[4,2]T(1,0)                                       groups, from the numbers in an order
    replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}        along axes of a mesh of them
    """
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", collective.rest):
        return tuple(int(number) for number in found[1].split(","))
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", collective.rest):
        return tuple(_in_order(found[2]).reshape([int(length) for length in found[1].split(",")])[0].tolist())
    pattern = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}"
    if found := re.search(pattern, collective.rest):
        lengths = {name: int(length) for name, length in (axis.split("=") for axis in found[1].split(","))}
        numbers = _in_order(found[2] or f"[{math.prod(lengths.values())}]").reshape(list(lengths.values()))
        first = tuple(slice(None) if name in found[3].split(",") else 0 for name in lengths)
        return tuple(numbers[first].reshape(-1).tolist())
    return ()


def _in_order(text: str) -> np.ndarray:
    """The numbers from 0 in the order that is written as [4,2]T(1,0): shape and transposition."""
    shape, _, axes = text.partition("T")
    lengths = [int(length) for length in shape.strip("[]").split(",")]
    numbers = np.arange(math.prod(lengths)).reshape(lengths)
    return numbers.transpose([int(axis) for axis in axes.strip("()").split(",")]) if axes else numbers


def _size(kind: str) -> int:
    return sum(_bytes(found) for found in _ARRAY.finditer(kind))


def _in_memory(kind: str) -> int:
    return sum(_bytes(found) for found in _ARRAY.finditer(kind) if "S(" not in (found[3] or ""))


def _bytes(array: re.Match[str]) -> int:
    bits = re.search(r"\d+", array[1])
    number = math.prod(int(length) for length in array[2].split(",") if length)
    return -(-number * int(bits[0]) // 8) if bits else number
