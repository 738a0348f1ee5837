"""The rows of `benchmarks.accelerator` as tables in Markdown, and as JSON."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.accelerators.autoattack import PRODUCTS
from benchmarks.accelerators.row_log import DONE, Line
from benchmarks.accelerators.steps import PYTORCH_WAYS
from benchmarks.machine import machine_line
from benchmarks.records import Column, Rows, markdown_table

Lines = Mapping[str, Line]

NAME = "accelerator"
_TITLE = """\
# On an accelerator

Written by `python -m benchmarks.accelerator --report`; all numbers: `accelerator.json`. The first look, by scripts
that are not in this repository: `accelerator_first_look.md`."""
_ABOUT = {
    "autoattack": """\
## AutoAttack

Version `standard` on the first test images of MNIST, L-infinity, radius 0.3, no diagnostics; the published network of
TRADES, or the LeNet of the main job. The official code (pyautoattack) has batches of 1,000 and cuDNN's own choice of
algorithms. Default products are TF32 on such cards. Seconds of rap_jax: with programs from the cache that its first
call has filled. Ratio, same flags: against the official code with the same products.""",
    "job": """\
## The main job and its evaluation

`launch.main --flagfile=lenet_mnist` on the real MNIST, with preparing the data and compiling, then
`launch.evaluate`.""",
    "steps": """\
## Training steps, images per second

Attack and update; median of the rounds, in turn, each way in a process of its own. Pipelined: in the loop of a run,
which fetches the metrics of a step after the next has been dispatched; waited: each step by itself. PyTorch: the same
step, waited for at the end of a round. Ratio: pipelined against the best of PyTorch.""",
    "seeds": """\
## Several networks in one program, images per second of all

LeNets of different seeds by `vmap`, batch 128 each, PGD-10. Ratio: to one network of the same width, pipelined.""",
    "memory": """\
## Peak memory in MB

Of a training step, each in a process of its own. Compiling: with XLA's trials of algorithms; without: programs from a
cache. PyTorch: what its tensors take (`max_memory_allocated`).""",
    "equality": """\
## Equality with the CPU

Random networks and images; against products in float32 on the CPU of the same process, the same form of the layers and
the same random numbers. Errors are relative, of the norm.""",
}
PARTS = tuple(_ABOUT)


def write_report(lines: Lines, folder: Path) -> str:
    """Merges the lines into `accelerator.json` of the folder, writes `accelerator.md`, and returns its text."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.json"
    before: dict[str, Line] = json.loads(path.read_text())["rows"] if path.exists() else {}
    # A row that fails now does not take the place of one that was measured.
    kept = {name: line for name, line in lines.items() if line["status"] == DONE or _is_failed(before.get(name))}
    rows = before | kept
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    text = report(rows)
    (folder / f"{NAME}.md").write_text(text)
    return text


def report(lines: Lines) -> str:
    """The tables of all parts that have rows, the rows that failed, and what they were measured on."""
    done = {name: line["found"] | _device(line) for name, line in lines.items() if line["status"] == DONE}
    sections = [_TITLE]
    for part in PARTS:
        of_part = {name: found for name, found in done.items() if name.startswith(f"{part}/")}
        if of_part:
            sections += [_ABOUT[part], _TABLES[part](of_part)]
    failed = [f"- {name}: {line['error']}" for name, line in lines.items() if line["status"] != DONE]
    notes = [f"- {name}, {way}: {error}" for name, found in done.items() for way, error in _errors(found)]
    if failed or notes:
        sections += ["## Not measured", "\n".join(" ".join(entry.split()) for entry in failed + notes)]
    machines = dict.fromkeys(_machine(line) for line in lines.values())
    return "\n\n".join([*sections, "## Measured on", "\n".join(f"- {machine}" for machine in machines)]) + "\n"


def _is_failed(line: Line | None) -> bool:
    return line is None or line["status"] != DONE


def _errors(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(found.get("errors", {}).items())


def _device(line: Line) -> dict[str, str]:
    """Rows are compared on one kind of device alone."""
    return {"device": line["machine"]["device"]}


def _machine(line: Line) -> str:
    machine = line["machine"]
    driver = f", driver {machine['driver']}" if machine["driver"] else ""
    return f"{machine['device']}{driver}; {machine_line(machine)}"


def _autoattack_table(rows: Rows) -> str:
    table = {}
    for name, found in rows.items():
        official = rows.get(f"{name.rpartition('/')[0]}/official_{found['products']}")
        table[_what(name)] = found | {f"{part}_seconds": seconds for part, seconds in found["parts"].items()}
        if official is not None and found["side"] == "rap_jax" and found["device"] == official["device"]:
            same = sum(one == other for one, other in zip(found["flags"], official["flags"], strict=True))
            compared = {"ratio": official["seconds"] / found["seconds"], "same": f"{same} of {found['num_images']}"}
            table[_what(name)] |= compared
    parts = dict.fromkeys(part for found in rows.values() for part in found["parts"])
    return markdown_table(
        table,
        [
            Column("examples_per_second", "examples/s", ".1f"),
            Column("ratio", "ratio", ".2f"),
            Column("same", "same flags"),
            Column("robust", "robust", ".2%"),
            Column("seconds", "seconds", ".1f"),
            Column("first_seconds", "first call", ".1f"),
            *(Column(f"{part}_seconds", part, ".1f") for part in parts),
        ],
    ) + _same_by_products(rows)


def _same_by_products(rows: Rows) -> str:
    """How many flags of rap_jax do not depend on the products."""
    lines = []
    for group in dict.fromkeys(name.rpartition("/")[0] for name in rows):
        both = [rows.get(f"{group}/rap_jax_{products}") for products in PRODUCTS]
        if both[0] is not None and both[1] is not None and both[0]["device"] == both[1]["device"]:
            same = sum(one == other for one, other in zip(both[0]["flags"], both[1]["flags"], strict=True))
            total = both[0]["num_images"]
            lines.append(f"\n\n{_what(group)}: rap_jax says the same of {same} of {total} with either products.")
    return "".join(lines)


def _job_table(rows: Rows) -> str:
    table: Rows = {}
    for name, found in rows.items():
        table[_what(name)] = cells = {"seconds": found["command_seconds"], "megabytes": found["megabytes"]}
        if "stage_seconds" in found:
            cells |= {"natural": found["natural"], "pgd": found["robust"]}
            cells["parts"] = ", ".join(f"{stage} {s:.1f}" for stage, s in found["stage_seconds"].items())
        else:
            cells["natural"] = found["clean"]["natural_accuracy"]
            # An attack that was left out is None.
            cells |= {attack: (found[attack] or {}).get("robust_accuracy") for attack in ("pgd", "auto_attack")}
    columns = [
        Column("seconds", "seconds", ".1f"),
        Column("natural", "natural", ".2%"),
        Column("pgd", "PGD", ".2%"),
        Column("auto_attack", "AutoAttack", ".2%"),
        Column("megabytes", "peak MB", ",.0f"),
        Column("parts", "seconds of the stages"),
    ]
    return markdown_table(table, columns)


def _steps_table(rows: Rows) -> str:
    table = {_what(name): found | found["images_per_second"] | _spreads(found) for name, found in rows.items()}
    return markdown_table(
        table,
        [
            Column("dtype", "rap_jax in"),
            Column("pipelined", "pipelined", ",.0f"),
            Column("waited", "waited", ",.0f"),
            *(Column(way, way.replace("_", " "), ",.0f") for way in PYTORCH_WAYS),
            Column("ratio", "ratio", ".2f"),
            Column("ratio_waited", "waited", ".2f"),
            Column("spread", "largest spread", ".0%"),
        ],
    )


def _seeds_table(rows: Rows) -> str:
    table = {}
    for name, found in rows.items():
        one = rows.get(f"seeds/lenet_w{found['width']}_n1")
        speeds = found["images_per_second"]
        table[_what(name)] = found | speeds | _spreads(found)
        if one is not None and one["device"] == found["device"]:
            table[_what(name)]["ratio"] = speeds["pipelined"] / one["images_per_second"]["pipelined"]
    columns = [
        Column("num_networks", "networks"),
        Column("pipelined", "pipelined", ",.0f"),
        Column("waited", "waited", ",.0f"),
        Column("ratio", "ratio", ".2f"),
        Column("spread", "largest spread", ".0%"),
    ]
    return markdown_table(table, columns)


def _spreads(found: Mapping[str, Any]) -> dict[str, float]:
    return {"spread": max(found["spread"].values())}


def _memory_table(rows: Rows) -> str:
    ways = {"rap_jax": "rap_jax", "rap_jax_compiling": "compiling"}
    ways |= {way: way.replace("_", " ") for way in PYTORCH_WAYS}
    table = {_what(name): found | found["megabytes"] for name, found in rows.items()}
    return markdown_table(table, [Column("dtype", "rap_jax in"), *(Column(w, t, ",.0f") for w, t in ways.items())])


def _equality_table(rows: Rows) -> str:
    table = {}
    for name, found in rows.items():
        network = _what(name).removesuffix("_autoattack")
        for bar in found["bars"]:
            title = ", ".join(filter(None, (network, bar["what"], bar["products"] and f"{bar['products']} products")))
            table[title] = bar | {"verdict": "holds" if bar["holds"] else "FAILS"}
    columns = [Column("found", "found"), Column("tolerance", "tolerance"), Column("verdict", "verdict")]
    return markdown_table(table, columns)


def _what(name: str) -> str:
    """The name of a row without its part."""
    return name.partition("/")[2]


_TABLES: dict[str, Callable[[Rows], str]] = {
    "autoattack": _autoattack_table,
    "job": _job_table,
    "steps": _steps_table,
    "seeds": _seeds_table,
    "memory": _memory_table,
    "equality": _equality_table,
}
