"""What the pages say is there: links, flags, recipes."""

import re
from pathlib import Path

import pytest
from absl import flags
from pages import DOCS, README
from repository import ROOT

from launch import evaluate_flags, export_flags, predict, reproduce_flags
from launch import flags as run_flags

PAGES = sorted({README, *DOCS.rglob("*.md")})
# Of users; other pages speak of benchmarks and of PyTorch too.
FOR_USERS = [page for page in PAGES if page.parent.name in ("guides", "tutorials") or page.parent == ROOT]
FOR_USERS += [DOCS / f"{name}.md" for name in ("getting_started", "faq")]
OF_OTHERS = {"--stage", "--no-index", "--no-deps", "--minutes"}
HELP = {"--help", "--flagfile"}


def known_flags() -> set[str]:
    """Of all commands, with their negations."""
    names: set[str] = set(run_flags.FLAGS)
    for module in (evaluate_flags, export_flags, predict, reproduce_flags):
        values: flags.FlagValues = module.FLAGS
        names |= set(values)
    return {f"--{name}" for name in names} | {f"--no{name}" for name in names} | HELP


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", FOR_USERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_exist(page: Path) -> None:
    known = known_flags()
    text = re.sub(r"python -m benchmarks.*|sphinx-build.*|pip install.*", "", page.read_text())
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_]*(?![\w.]*-)", text))
    unknown = {flag for flag in found if flag not in known and not flag.endswith("_")}
    assert unknown <= OF_OTHERS


def test_the_pages_are_in_the_table_of_contents() -> None:
    listed = set[Path]()
    for index in DOCS.rglob("index.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {index.parent / f"{name}.md" for name in names}
    assert {*DOCS.rglob("*.md")} - listed == {DOCS / "index.md"}
