"""The import rule of BUILD.md: data flows one way, and the numerics know nothing of the trainer."""

import ast
from pathlib import Path

import pytest
from repository import ROOT

# A module may import modules of its own level or of a level before it.
LEVELS = [
    {"config"},
    {"arrays"},
    {
        "projections",
        "attacks",
        "losses",
        "keys",
        "folder",
        "metrics",
        "progress",
        "interrupt",
        "digest",
        "checksums",
        "checked_json",
        "difference",
        "unreadable",
        "wording",
        "devices",
        "processes",
        "parts",
        "captured",
        "traced",
        "batch_sizes",
        "fingerprint",
        "environment",
        "interval",
        "picture",
    },
    {"specs", "admm", "masking", "layers", "ownership", "compaction"},
    {"sparsity", "optimizer", "state", "checkpoint", "data", "models"},
    {"batch", "saved_network", "shards", "input", "length", "free", "step", "survivors", "verdict", "cut", "cost"},
    {"train", "evaluate", "start", "diagnostics", "stage_optimizer"},
    {"auto_attack"},
    {"stage", "small_stage", "plots", "report", "describe", "judge"},
    {"pipeline", "forecast", "robustness", "export", "reproduce"},
]
LIBRARY = {  # usable with any JAX model: nothing of this package but each other
    "arrays": set(),
    "attacks": {"arrays", "attacks", "losses"},
    "projections": {"arrays"},
    "layers": set(),
    "losses": {"arrays"},
    "admm": {"arrays", "layers"},
    "masking": {"layers", "projections"},
}


def modules() -> dict[str, list[Path]]:
    """Every module or sub-package of rap_jax with its files."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "rap_jax").rglob("*.py")):
        name = path.relative_to(ROOT / "rap_jax").parts[0].removesuffix(".py")
        if name != "__init__":
            found.setdefault(name, []).append(path)
    return found


def imported(path: Path) -> set[str]:
    """Full names of what a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path} uses a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(names: set[str]) -> set[str]:
    """Modules of rap_jax among the names."""
    return {name.split(".")[1] for name in names if name.startswith("rap_jax.")}


def test_every_module_has_a_level() -> None:
    assert set(modules()) == set().union(*LEVELS)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_back(name: str) -> None:
    level = next(number for number, names in enumerate(LEVELS) if name in names)
    allowed = set().union(*LEVELS[: level + 1])
    for path in modules()[name]:
        assert own(imported(path)) <= allowed, path
        assert not {n for n in imported(path) if n.split(".")[0] in ("launch", "tests", "benchmarks")}, path


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_the_library_stands_alone(name: str) -> None:
    for path in modules()[name]:
        assert own(imported(path)) <= LIBRARY[name], path


def test_no_circles() -> None:
    graph = {name: set().union(*(own(imported(path)) for path in paths)) - {name} for name, paths in modules().items()}

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        for other in graph[name]:
            visit(other, (*above, name))

    for name in graph:
        visit(name, ())


def test_flags_stay_in_launch() -> None:
    for path in (ROOT / "rap_jax").rglob("*.py"):
        assert not {n for n in imported(path) if n.startswith(("absl.flags", "absl.app"))}, path


def test_linen_stays_in_models() -> None:
    for path in (ROOT / "rap_jax").rglob("*.py"):
        if "models" not in path.parts:
            assert not {n for n in imported(path) if n.startswith("flax")}, path
