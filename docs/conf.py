"""Sphinx: `sphinx-build -W docs runs/docs`. Needs the extra `docs`, and no network."""

import re

from sphinx.application import Sphinx

from rap_jax import __version__

project = "rap_jax"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"rap_jax {__version__}"
myst_heading_anchors = 3
default_role = "literal"  # docstrings mark code as Markdown does
autodoc_typehints = "none"
autodoc_member_order = "bysource"


def as_written(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: outside of code no character has a meaning, and a list may follow a line at once."""
    for number in reversed(range(len(lines))):
        # An indented block of a module is a table in columns.
        if what == "module" and number and lines[number].startswith("    ") and not lines[number - 1].strip():
            lines[number:number] = ["::", ""]
            continue
        pieces = re.split(r"(`[^`]*`)", lines[number])
        lines[number] = "".join(p if p.startswith("`") else re.sub(r"([*|])", r"\\\1", p) for p in pieces)
        if number and re.match(r"\(1\) ", lines[number]) and lines[number - 1].strip():
            lines.insert(number, "")


def setup(app: Sphinx) -> None:
    """Before napoleon, which has the priority 500."""
    app.connect("autodoc-process-docstring", as_written, priority=400)
