"""The import rule of BUILD.md: data flows one way, and the numerics know nothing of the trainer."""

import ast
from pathlib import Path

import pytest
from repository import ROOT

# Package -> packages that it may import, all of them in rows above its own.
ALLOWED: dict[str, str] = {
    "config": "",
    "_runtime": "config",
    "attacks": "_runtime",
    "models": "_runtime config",
    "pruning": "_runtime",
    "compaction": "_runtime models pruning",
    "data": "_runtime config",
    "runs": "_runtime config models",
    "reproduction": "_runtime config runs",
    "evaluation": "_runtime attacks compaction config data models runs",
    "export": "_runtime attacks compaction config data evaluation models pruning runs",
    "training": "_runtime attacks compaction config data evaluation models pruning runs",
}
# Usable with any JAX model: nothing of this package but each other.
LIBRARY = {
    "_runtime.arrays": (),
    "attacks": ("attacks", "_runtime.arrays", "_runtime.functions"),
    "pruning": ("pruning", "_runtime.arrays"),
}


def files(name: str) -> list[Path]:
    """The files of a package or module of rap_jax."""
    place = ROOT / "rap_jax" / name.replace(".", "/")
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


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
    """Those of rap_jax among the names, without its name."""
    return {name.removeprefix("rap_jax.") for name in names if name.startswith("rap_jax.")}


def test_at_the_top_lie_packages_alone() -> None:
    found = {path.name for path in (ROOT / "rap_jax").iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert found == {*ALLOWED, "__init__.py"}
    assert len(ALLOWED) <= 12


def test_the_table_points_up() -> None:
    above: set[str] = set()
    for package, allowed in ALLOWED.items():
        assert set(allowed.split()) <= above, package
        above.add(package)
    assert sum(len(allowed.split()) for allowed in ALLOWED.values()) <= 41


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_what_the_table_allows(package: str) -> None:
    found = {name.split(".")[0] for path in files(package) for name in own(imported(path))} - {package}
    assert found == set(ALLOWED[package].split())


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_stands_alone(name: str) -> None:
    for path in files(name):
        assert not {n for n in own(imported(path)) if not n.startswith(LIBRARY[name])}, path


def test_no_circles_between_modules() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "rap_jax").rglob("*.py")
    }
    graph = {
        name: {n.rsplit(".", 1)[0] for n in imported(path) if n.rsplit(".", 1)[0] in modules}
        | (imported(path) & set(modules))
        for name, path in modules.items()
    }

    def visit(name: str, above: tuple[str, ...], done: set[str]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*above, name), done)
            done.add(name)

    done: set[str] = set()
    for name in graph:
        visit(name, (), done)


def test_users_are_shown_nothing_private() -> None:
    pages = {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.ipynb")}
    for_builders = {ROOT / "BUILD.md", ROOT / "docs/contributing.md", *ROOT.glob("docs/decisions/*")}
    for path in pages - for_builders:
        assert "_runtime" not in path.read_text(), path


def test_a_package_does_not_import_those_who_use_it() -> None:
    for path in (ROOT / "rap_jax").rglob("*.py"):
        names = imported(path)
        assert not {n for n in names if n.split(".")[0] in ("launch", "tests", "benchmarks")}, path
        assert not {n for n in names if n.startswith(("absl.flags", "absl.app"))}, path
        assert "models" in path.parts or not {n for n in names if n.startswith("flax")}, path
